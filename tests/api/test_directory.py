"""A directory's HTTP side, in one process: who waits, who leaves, what is refused and counted."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from multispin.api import directory_texts
from multispin.api.cell_state import Cell
from multispin.api.directory_cell import Cluster
from multispin.cell.replica_list import (
    ListedReplica,
    ListedTarget,
    ReplicaList,
    write_replica_list,
)
from multispin.core.tenant import LOCAL
from multispin.net.address import parse_address
from multispin.net.device import Device
from multispin.net.directory import Directory
from tests.api.directory_stage import Stage, play
from tests.api.stage import ask, leave, until
from tests.net.fake_replica import FakeReplica, standing, status

CHAT: dict[str, Any] = {"model": "chat", "max_tokens": 30, "logit_bias": {"256": -100}}


async def told(address: str, **fields: Any) -> tuple[int, dict[str, Any]]:
    """Status and document of a completion."""
    reader, writer = await ask(address, **{**CHAT, **fields})
    head = await reader.readuntil(b"\r\n\r\n")
    body = await reader.readexactly(length_of(head))
    await leave(writer)
    return int(head.split()[1]), json.loads(body)


async def get(address: str, path: str) -> tuple[int, bytes]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    body = await reader.readexactly(length_of(head))
    await leave(writer)
    return int(head.split()[1]), body


def length_of(head: bytes) -> int:
    fields = dict(line.split(b": ", 1) for line in head.strip().split(b"\r\n")[1:])
    return int({name.lower(): value for name, value in fields.items()}[b"content-length"])


def text_of(document: dict[str, Any]) -> str:
    text: str = document["choices"][0]["text"]
    return text


def num_sessions(stage: Stage) -> int:
    return sum(replica.server.core.num_sessions for replica in stage.replicas.values())


def told_sessions(stage: Stage) -> list[int]:
    """What the directory knows of."""
    return [r.status.num_sessions for r in stage.state.directory.replicas if r.status]


def test_a_text_is_that_of_a_replica_and_sticks_to_one(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        [direct] = {
            text_of((await told(replica.address, model="ngram", seed=5, temperature=0.9))[1])
            for replica in stage.replicas.values()
        }
        before = {n: r.server.core.counters.num_batches for n, r in stage.replicas.items()}
        for _ in range(6):
            code, document = await told(stage.address, seed=5, temperature=0.9)
            assert (code, document["model"], text_of(document)) == (200, "chat", direct)
        batches = {n: r.server.core.counters.num_batches for n, r in stage.replicas.items()}
        assert sum(batches[name] != before[name] for name in batches) == 1

    play(scene, tmp_path, num_sequences=8)  # more places than texts between two statuses


def test_the_model_of_a_request_is_the_target(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        listed = [
            ListedReplica("a", "chat", stage.replicas["a"].address),
            ListedReplica("b", "large", stage.replicas["b"].address),
        ]
        targets = [ListedTarget("chat"), ListedTarget("large", 2)]
        write_replica_list(stage.file, ReplicaList(targets, listed))
        await until(lambda: stage.state.directory.target_names == ["chat", "large"])
        await until(lambda: len(stage.serving) == 2)
        models = json.loads((await get(stage.address, "/v1/models"))[1])["data"]
        assert [model["id"] for model in models] == ["chat", "large", "auto"]
        document = json.loads((await get(stage.address, "/openapi.json"))[1])
        schema = document["components"]["schemas"]["CompletionRequest"]
        assert schema["properties"]["model"]["enum"] == ["chat", "large", "auto"]
        for model, name in (("chat", "a"), ("large", "b")):
            counters = stage.replicas[name].server.core.counters
            before = counters.num_committed_tokens
            for number in range(4):
                assert (await told(stage.address, model=model, prompt=f"{number}"))[0] == 200
            assert counters.num_committed_tokens == before + 4 * 30
        for asked, name in (({}, "a"), ({"min_quality": 2}, "b")):
            counters = stage.replicas[name].server.core.counters
            before = counters.num_committed_tokens
            code, document = await told(stage.address, model="auto", **asked)
            assert (code, document["model"]) == (200, "ngram")
            assert counters.num_committed_tokens == before + 30
        code, document = await told(stage.address, model="auto", min_quality=3)
        assert (code, document["error"]["code"]) == (400, "infeasible")

    play(scene, tmp_path)


@pytest.mark.parametrize("names", [["chat", "large"], ["large", "chat"]])
def test_a_choice_among_targets_of_which_one_is_not_there(names: list[str], tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        there = ListedReplica("a", "chat", stage.replicas["a"].address)
        targets = [ListedTarget(name) for name in names]
        write_replica_list(stage.file, ReplicaList(targets, [there]))
        await until(lambda: stage.state.directory.target_names == names)
        await until(lambda: stage.serving == ["a"])
        auto = stage.state.proxy.texts({"type": "http", "headers": []})[-1]
        assert (auto.target, auto.context_length) == ("auto", 1024)
        code, document = await told(stage.address, model="auto", max_s_per_token=100.0)
        assert (code, document["model"]) == (200, "ngram")
        code, document = await told(stage.address, model="auto")
        if names[0] == "chat":
            assert (code, document["model"]) == (200, "ngram")
        else:  # that is what who asks for nothing gets
            assert (code, document["error"]["code"]) == (503, "loading")

    play(scene, tmp_path)


def test_who_leaves_frees_the_session_on_its_replica(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        for stream in (True, False):
            reader, writer = await ask(stage.address, **{**CHAT, "max_tokens": 900}, stream=stream)
            await until(lambda: num_sessions(stage) == 1)
            if stream:
                await reader.readuntil(b"data: ")
            await leave(writer)
            await until(lambda: num_sessions(stage) == 0)
            await until(lambda: stage.state.proxy.num_texts == 0)

    play(scene, tmp_path)


def test_what_is_refused_and_how(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        refusals: list[tuple[dict[str, Any], int, str]] = [
            ({"model": "ngram"}, 404, "model_not_found"),
            ({"max_s_per_token": 1e-12}, 400, "infeasible"),
            ({"min_quality": 7}, 400, "infeasible"),
            ({"max_tokens": 0}, 400, "invalid_value"),
        ]
        for fields, expected, code in refusals:
            status_code, document = await told(stage.address, **fields)
            assert (status_code, document["error"]["code"]) == (expected, code), document
        within, _ = await told(stage.address, max_s_per_token=10.0, min_quality=1)
        assert within == 200

    play(scene, tmp_path)


def test_when_all_places_are_taken_or_nobody_serves(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        writers = []
        for replica in stage.replicas.values():
            replica.engine.steps.clear()
        for number in range(2):
            fields = {**CHAT, "prompt": f"text {number}", "stream": True}
            writers.append((await ask(stage.address, **fields))[1])
            await until(lambda number=number: num_sessions(stage) == number + 1)
        await until(lambda: all(told_sessions(stage)))
        status_code, document = await told(stage.address)
        assert (status_code, document["error"]["code"]) == (429, "overloaded")
        for replica in stage.replicas.values():
            replica.engine.steps.set()
        for writer in writers:
            await leave(writer)
        assert (await get(stage.address, "/health"))[0] == 200
        stage.list()
        await until(lambda: not stage.serving)
        assert (await get(stage.address, "/health"))[0] == 503
        status_code, document = await told(stage.address)
        assert (status_code, document["error"]["code"]) == (503, "loading")
        models = json.loads((await get(stage.address, "/v1/models"))[1])["data"]
        assert [(model["id"], model["link"]) for model in models] == [("chat", "down")]

    play(scene, tmp_path, num_sequences=1)


def test_concurrent_texts_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory_texts, "MAX_TEXTS", 1)

    async def scene(stage: Stage) -> None:
        _, writer = await ask(stage.address, **{**CHAT, "max_tokens": 900}, stream=True)
        await until(lambda: num_sessions(stage) == 1)
        status_code, document = await told(stage.address)
        assert (status_code, document["error"]["code"]) == (429, "overloaded")
        await leave(writer)
        await until(lambda: stage.state.proxy.num_texts == 0)
        assert (await told(stage.address))[0] == 200

    play(scene, tmp_path)


def test_none_is_closed_that_is_taken_while_another_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene() -> None:
        proxy = directory_texts.Proxy(Directory(), parse_address)
        closing, close = asyncio.Event(), asyncio.Event()

        async def slowly() -> None:
            closing.set()
            await close.wait()

        async def take(token: str) -> Device:
            async with proxy.device(LOCAL, token) as device:
                return device

        first = await take("first")
        monkeypatch.setattr(first, "close", slowly)
        await take("second")
        monkeypatch.setattr(directory_texts, "MAX_IDLE", 0)
        taking = asyncio.create_task(take("third"))
        await closing.wait()
        async with proxy.device(LOCAL, "second") as device:
            close.set()
            await taking
            assert not device.router.is_closed
        await proxy.close()

    asyncio.run(scene())


def test_a_drain_lets_texts_end_and_begins_none(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        for replica in stage.replicas.values():
            replica.engine.steps.clear()
        writing = asyncio.create_task(told(stage.address))
        await until(lambda: num_sessions(stage) == 1)
        draining = asyncio.create_task(stage.state.drain(10.0))
        await until(lambda: stage.state.proxy.is_draining)
        status_code, document = await told(stage.address)
        assert (status_code, document["error"]["code"]) == (503, "draining")
        assert (await get(stage.address, "/health"))[0] == 503
        assert not draining.done()
        for replica in stage.replicas.values():
            replica.engine.steps.set()
        assert (await writing)[0] == 200
        await draining

    play(scene, tmp_path)


# --- what is told of replicas --------------------------------------------------------------------


def test_metrics_of_all_replicas_are_one_valid_exposition(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        for number in range(6):
            await told(stage.address, prompt=f"text {number}")
        text = (await get(stage.address, "/metrics"))[1].decode()
        names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
        assert len(names) == len(set(names))
        values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        tokens = {
            name: values["multispin_generation_tokens_total", frozenset({("replica", name)})]
            for name in stage.replicas
        }
        for name, replica in stage.replicas.items():
            assert tokens[name] == replica.server.core.counters.num_committed_tokens
        assert sum(tokens.values()) == 6 * 30
        serving = frozenset({("target", "chat"), ("condition", "ok")})
        assert values["multispin_replicas", serving] == 2
        assert values["multispin_directory_unanswered_total", frozenset()] == 0

    play(scene, tmp_path)


def test_a_replica_that_does_not_answer_or_lies_is_left_out(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        silent, liar = FakeReplica("silent"), FakeReplica("liar")
        liar.documents = {"metrics": b"no metric { at all", "cell": b'{"target": 3}'}
        async with standing(silent), standing(liar):
            stage.replicas |= {"silent": silent, "liar": liar}  # type: ignore[dict-item]
            stage.list("a", "b", "silent", "liar")
            welcome = stage.replicas["a"].server.core.info.target
            assert welcome == "ngram"
            await until(lambda: {"a", "b"} == set(stage.serving))  # theirs is another model
            directory = stage.state.directory
            await until(lambda: [bool(r.status) for r in directory.replicas] == [True] * 4)
            began = time.monotonic()
            text = (await get(stage.address, "/metrics"))[1].decode()
            assert 0.9 < time.monotonic() - began < 3
            assert 'replica="a"' in text
            assert "silent" not in text and "liar" not in text
            assert "multispin_directory_unanswered_total 1.0" in text
            assert 'multispin_replicas{condition="other_model",target="chat"} 2.0' in text
            cell = msgspec.json.decode((await get(stage.address, "/api/cell"))[1], type=Cell)
            assert [replica.name for replica in cell.replicas] == ["a", "b", "silent", "liar"]
            assert (cell.mode, cell.num_sessions) == ("stop-and-wait", 0)

    play(scene, tmp_path)


def test_the_cell_is_the_sum_of_cells(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        for number in range(6):
            await told(stage.address, prompt=f"text {number}")
        for replica in stage.replicas.values():
            replica.engine.steps.clear()
        writers = [
            (await ask(stage.address, **{**CHAT, "prompt": f"{n}"}, stream=True))[1]
            for n in range(3)
        ]
        await until(lambda: num_sessions(stage) == 3)
        cell = msgspec.json.decode((await get(stage.address, "/api/cell"))[1], type=Cell)
        parts = [
            msgspec.json.decode((await get(replica.address, "/api/cell"))[1], type=Cell)
            for replica in stage.replicas.values()
        ]
        assert cell.num_sessions == sum(part.num_sessions for part in parts) == 3
        assert cell.without_drafter.num_sessions == 3
        assert cell.target == "chat"
        assert all(part.counters["num_committed_tokens"] for part in parts)
        for name, value in parts[0].counters.items():
            assert cell.counters[name] == value + parts[1].counters[name]
        for replica in stage.replicas.values():
            replica.engine.steps.set()
        for writer in writers:
            await leave(writer)

    play(scene, tmp_path)


def test_the_cluster_says_how_each_replica_is(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        async with standing(FakeReplica("c")) as fake:
            stage.replicas["c"] = fake  # type: ignore[assignment]
            stage.list("a", "b", "c")
            welcome = next(t.welcome for t in stage.state.directory.targets)
            fake.status = status("c", condition="draining", welcome=welcome, num_sessions=5)
            await until(lambda: ("c", "draining") in conditions(stage))
            cluster = await read(stage)
            assert [(r.name, r.condition) for r in cluster.replicas] == [
                ("a", "ok"),
                ("b", "ok"),
                ("c", "draining"),
            ]
            assert cluster.num_sessions == 5
            assert [(t.name, t.model) for t in cluster.targets] == [("chat", "ngram")]
        await until(lambda: ("c", "down") in conditions(stage))

    play(scene, tmp_path)


def conditions(stage: Stage) -> list[tuple[str, str]]:
    return [(r.listed.name, r.condition) for r in stage.state.directory.replicas]


async def read(stage: Stage) -> Cluster:
    return msgspec.json.decode((await get(stage.address, "/api/cluster"))[1], type=Cluster)
