"""`multispin cluster` without a Ray: what can be said before, after and instead of one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from multispin.cell.deployment import DIRECTORY, load_deployment
from multispin.cluster import commands
from multispin.cluster import folder as files
from multispin.cluster.connection import check_installed, check_reachable
from multispin.cluster.keeper import KeeperState
from multispin.cluster.overview import Overview, row
from multispin.errors import BadInput, PeerError
from multispin.wire.replica import Status
from tests.cluster.places import free_ports

LAPTOP = Path(__file__).parents[2] / "examples" / "laptop" / "cluster.toml"


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "multispin", "cluster", *arguments],
        env={**os.environ, "XDG_STATE_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("status",), "no cluster is known here"),
        (("down", "--cluster", "other"), "no cluster is known here"),
        (("scale", "chat", "3:2"), "MAX not below MIN"),
        (("scale", "chat", "many"), "must be a number"),
        (("up", "nowhere.toml"), "cannot be read"),
        (("up", str(LAPTOP), "--wait-s", "-1"), "--wait-s"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(tmp_path / "file", "up", str(LAPTOP))
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "XDG_STATE_HOME" in done.stderr


def test_without_the_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install 'multispin\[cluster\]'"):
        check_installed()


def test_where_nobody_listens_no_ray_is_waited_for() -> None:
    port = free_ports(1)[0]
    with pytest.raises(PeerError, match=f"no Ray answers at 127.0.0.1:{port}"):
        check_reachable(f"127.0.0.1:{port}")
    for address in ("somewhere", "host:port", "127.0.0.1:0", ":6379"):
        with pytest.raises(BadInput, match="HOST:PORT"):
            check_reachable(address)


def test_one_cluster_needs_no_name_and_two_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    files.make_private(files.folder_of("a"))
    assert commands.named(None) == "a"
    files.make_private(files.folder_of("b"))
    assert commands.named("b") == "b"
    for given in (None, "c"):
        with pytest.raises(BadInput, match="choose one of those known here: a, b"):
            commands.named(given)


def test_two_commands_do_not_change_one_cluster_side_by_side(tmp_path: Path) -> None:
    with (
        files.alone(tmp_path / "a"),
        files.alone(tmp_path / "b"),
        pytest.raises(BadInput, match="wait for its end"),
        files.alone(tmp_path / "a"),
    ):
        pass
    with files.alone(tmp_path / "a"):
        pass


def test_what_lacks_is_named_until_nothing_does() -> None:
    deployment = load_deployment(LAPTOP)

    def overview(*states: KeeperState, is_current: bool = True) -> Overview:
        told = Status("x", "ok", None, 0, 1, 0, 0.0, 0.0, 0, 0.0, 0.0, 0.0)
        status = {False: told, True: None}
        rows = [row(one, status[one.target == DIRECTORY], is_current) for one in states]
        return Overview(deployment, {}, rows)

    front = KeeperState("directory-0", DIRECTORY, "up", server="127.0.0.1:1")
    chat = [KeeperState(f"chat-{index}", "chat", "up") for index in range(3)]
    assert overview(front, *chat).lacking() == []
    assert overview(front, *chat).directories == ["127.0.0.1:1"]
    assert overview(front, *chat[1:]).lacking() == ["chat: 2 of 3 replicas are there"]
    assert overview(*chat).lacking() == ["not all directories are there"]
    failed = KeeperState("chat-2", "chat", "failed", why="no such model")
    assert overview(front, *chat[:2], failed).lacking() == ["chat-2: failed: no such model"]
    assert overview(front, *chat, is_current=False).lacking()[0] == "directory-0: to be replaced"
    silent = row(chat[0], None)
    assert (silent.condition, silent.serves) == ("silent", False)
