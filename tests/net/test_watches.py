"""The file that lists replicas: followed while it is good, kept while it is not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from multispin.cell.replica_list import (
    ListedReplica,
    ListedTarget,
    ReplicaList,
    read_replica_list,
    write_replica_list,
)
from multispin.errors import BadInput
from multispin.net import watches as watches_module
from multispin.net.address import parse_address
from multispin.net.directory import Directory
from multispin.net.watches import Watches
from tests.net.fake_replica import FakeReplica, standing, until


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches_module, "LOOK_S", 0.01)


def listing(**servers: str) -> ReplicaList:
    replicas = [ListedReplica(name, "chat", server) for name, server in servers.items()]
    return ReplicaList([ListedTarget("chat")], replicas)


class Followed:
    """A list that is followed, and who stands behind it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.directory = Directory()
        write_replica_list(file, listing())
        self.watches = Watches(self.directory, file, parse_address)

    @property
    def serving(self) -> set[str]:
        return {r.listed.name for r in self.directory.replicas if r.condition == "ok"}

    def list(self, **servers: str) -> None:
        write_replica_list(self.file, listing(**servers))

    async def serve(self, *names: str) -> None:
        await until(lambda: self.serving == set(names))


def play(scene: Callable[[Followed], Awaitable[None]], folder: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), following(folder / "replicas.json") as it:
            await scene(it)

    asyncio.run(main())


@contextlib.asynccontextmanager
async def following(file: Path) -> AsyncIterator[Followed]:
    it = Followed(file)
    running = asyncio.create_task(it.watches.run())
    try:
        yield it
        assert not running.done()
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    assert not [task for task in asyncio.all_tasks() if "ReplicaWatch" in repr(task.get_coro())]


def test_replicas_come_and_go_with_the_list(tmp_path: Path) -> None:
    async def scene(it: Followed) -> None:
        async with standing(FakeReplica("a")) as a, standing(FakeReplica("b")) as b:
            it.list(a=a.address)
            await it.serve("a")
            it.list(a=a.address, b=b.address)
            await it.serve("a", "b")
            kept = set(a.links)
            it.list(a=a.address)
            await it.serve("a")
            await until(lambda: not b.links)
            assert a.links == kept  # it was left alone
            it.list(a=b.address)  # under its name, elsewhere
            await until(lambda: b.links and not a.links)
            await it.serve("a")

    play(scene, tmp_path)


BROKEN = {
    "no JSON": "{",
    "a key too many": '{"targets": [{"name": "chat"}], "replicas": [], "x": 1}',
    "no target": '{"targets": [], "replicas": []}',
    "no server": '{"targets": [{"name": "chat"}], "replicas": [{"name": "a", "target": "chat"}]}',
    "no address": '{"targets": [{"name": "chat"}], "replicas": '
    '[{"name": "a", "target": "chat", "server": "nowhere"}]}',
    "unlisted target": '{"targets": [{"name": "chat"}], "replicas": '
    '[{"name": "a", "target": "b", "server": "x:1"}]}',
    "twice": '{"targets": [{"name": "chat"}, {"name": "chat"}], "replicas": []}',
    "a name of blanks": '{"targets": [{"name": " "}], "replicas": []}',
    "a cost of none": '{"targets": [{"name": "chat", "watts": -1}], "replicas": []}',
}


@pytest.mark.parametrize("broken", [*BROKEN, "gone", "a folder", "no text"])
def test_a_list_that_cannot_be_used_is_told_once_and_the_old_one_stays(
    broken: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(it: Followed) -> None:
        async with standing(FakeReplica("a")) as a:
            it.list(a=a.address)
            await it.serve("a")
            num_read = caplog.text.count("replicas_read")
            it.file.unlink()
            if broken == "a folder":
                it.file.mkdir()
            elif broken == "no text":
                it.file.write_bytes(b"\xff\xfe" * 40)
            elif broken != "gone":
                it.file.write_text(BROKEN[broken])
            await until(lambda: "replicas_kept" in caplog.text)
            await asyncio.sleep(0.1)
            assert it.serving == {"a"}
            assert caplog.text.count("replicas_read") == num_read
            if broken == "a folder":
                it.file.rmdir()
            it.list()
            await it.serve()

    with caplog.at_level(logging.INFO, "multispin.watching"):
        play(scene, tmp_path)
    kept = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert 1 <= len(kept) <= 2  # it may have been looked at while it was neither
    assert all(len(message.splitlines()) == 1 for message in kept)


@pytest.mark.parametrize("broken", BROKEN)
def test_at_the_start_it_is_refused(broken: str, tmp_path: Path) -> None:
    file = tmp_path / "replicas.json"
    file.write_text(BROKEN[broken])
    with pytest.raises(BadInput) as error:
        Watches(Directory(), file, parse_address)
    assert len(str(error.value).splitlines()) == 1


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    file = tmp_path / "replicas.json"
    many = ReplicaList(
        [ListedTarget("chat", 2, 300.0, 1.5), ListedTarget("hf:owner/repo/file.gguf")],
        [ListedReplica(f"chat-{n}", "chat", f"https://host-{n}:8600") for n in range(50)],
    )
    write_replica_list(file, many)
    assert read_replica_list(file) == many
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_document_is_asked_of_those_that_have_one(tmp_path: Path) -> None:
    async def scene(it: Followed) -> None:
        a, b, loading = FakeReplica("a"), FakeReplica("b"), FakeReplica("c")
        loading.status = watches_module.Status(
            "c", "loading", None, 0, 0, 0, 0.0, 0.0, 0, 0.0, 0.0, 0.0
        )
        a.documents["cell"] = b"{}"
        async with standing(a), standing(b), standing(loading):
            it.list(a=a.address, b=b.address, c=loading.address)
            await it.serve("a", "b")
            assert await it.watches.ask("cell") == {"a": b"{}"}
            assert it.watches.num_unanswered == 1
            assert loading.heard == []

    play(scene, tmp_path)
