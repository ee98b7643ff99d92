"""A keeper and real child processes: restarted, taken over, drained, and never in a hot loop."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from multispin.cell.replica_list import ListedTarget, ReplicaList, read_replica_list
from multispin.cluster import folder as files
from multispin.cluster.charge import Charge
from multispin.cluster.folder import Kept
from multispin.cluster.keeper import GRACE_S, MOST_DELAY_S, SETTLED_S, Keeper
from multispin.cluster.process import Process, end_all, environment, start
from tests.cluster.places import free_ports, is_free, wait_for
from tests.process import children_of

NGRAM = ("serve", "--target", "ngram", "--drain-s", "0", "--max-sessions", "2")


def charge(**changes: object) -> Charge:
    ports = free_ports(3)
    return replace(
        Charge(
            name="chat-0",
            target="chat",
            arguments=NGRAM,
            host="127.0.0.1",
            ports=ports,
            port=ports[0],
            reached_as="{ip}",
            is_secure=False,
            drain_s=0.0,
            cpus=1.0,
            gpus=0.0,
            memory_bytes=0,
            version="1",
        ),
        **changes,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Whatever is kept in it ends with the test."""
    yield tmp_path / "run"
    for kept in files.kept_in(tmp_path / "run"):
        kept.process.end(with_force=True)


def keeper_of(charge: Charge, folder: Path) -> Keeper:
    return Keeper(charge, folder, "192.0.2.1", time.monotonic)


def until(keeper: Keeper, condition: str) -> None:
    def holds() -> bool:
        keeper.step()
        return keeper.state().condition == condition

    wait_for(holds, keeper.state)


def replaced(keeper: Keeper) -> Keeper:
    """The next one, after this one has died."""
    keeper._turn.release()
    after = keeper_of(keeper.charge, keeper._folder)
    after.step()
    return after


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_a_killed_child_is_back_at_its_port(folder: Path) -> None:
    keeper = keeper_of(charge(), folder)
    until(keeper, "up")
    before = keeper.state()
    kill(before.pid)
    wait_for(lambda: not is_alive(before.pid), before)
    keeper.step()
    assert keeper.state().condition != "up"
    until(keeper, "up")
    after = keeper.state()
    assert (after.server, after.num_restarts) == (before.server, 1)
    assert after.pid != before.pid
    with socket.create_connection(("127.0.0.1", int(after.server.rpartition(":")[2])), 5):
        pass


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_nobody_is_started_where_the_cluster_has_been_ended(folder: Path) -> None:
    """By a `down` that no Ray could tell the keeper of."""
    keeper = Keeper(charge(), folder, "192.0.2.1", itertools.count(0.0, MOST_DELAY_S).__next__)
    keeper.step()
    [kept] = files.kept_in(folder)
    files.end(folder)
    kept.process.end(with_force=True)
    wait_for(lambda: not kept.process.lives, kept)
    for _ in range(3):
        keeper.step()
    assert "ended" in keeper.state().why
    assert files.kept_in(folder) == [kept]
    shutil.rmtree(folder)
    for _ in range(3):
        keeper.step()
    assert "ended" in keeper.state().why
    assert not folder.exists()


def test_the_next_keeper_takes_over_the_same_child(folder: Path) -> None:
    first = keeper_of(charge(), folder)
    until(first, "up")
    second = replaced(first)
    assert second.state() == first.state()
    second.step()
    assert second.state() == first.state()


def test_two_keepers_of_one_name_take_turns(folder: Path) -> None:
    first = keeper_of(charge(), folder)
    until(first, "up")
    second = keeper_of(first.charge, folder)
    for _ in range(3):
        second.step()
    assert second.state().pid == 0
    assert "another keeper" in second.state().why
    first._turn.release()
    second.step()
    assert second.state() == first.state()


def test_a_child_of_another_charge_is_drained_and_replaced(folder: Path) -> None:
    what = charge()
    first = keeper_of(what, folder)
    until(first, "up")
    changed = replace(what, arguments=(*NGRAM, "--ctx-size", "512"))
    first._turn.release()
    os.kill(first.state().pid, signal.SIGSTOP)
    second = keeper_of(changed, folder)
    for _ in range(3):
        second.step()
    assert is_alive(first.state().pid)  # it has its time to drain
    os.kill(first.state().pid, signal.SIGCONT)
    until(second, "up")
    assert not is_alive(first.state().pid)
    assert second.state().digest != first.state().digest


def test_ports_alone_make_no_other_charge() -> None:
    what = charge()
    assert replace(what, port=what.port + 1, ports=(1, 2)).digest == what.digest
    assert replace(what, version="2").digest != what.digest
    assert replace(what, cpus=2.0).digest != what.digest


def test_a_drained_child_leaves_nothing(folder: Path) -> None:
    keeper = keeper_of(charge(), folder)
    until(keeper, "up")
    up = keeper.state()
    keeper.drain()
    assert keeper.state().condition == "draining"
    until(keeper, "ended")
    assert not is_alive(up.pid)
    assert is_free(int(up.server.rpartition(":")[2]))
    assert files.kept_in(folder) == []
    keeper.step()
    assert keeper.state().condition == "ended"


def test_a_child_that_does_not_drain_is_killed(folder: Path) -> None:
    """It is stopped, and so cannot hear that it is to end."""
    now = [0.0]
    keeper = Keeper(charge(), folder, "192.0.2.1", lambda: now[0])
    until(keeper, "up")
    pid = keeper.state().pid
    os.kill(pid, signal.SIGSTOP)
    keeper.drain()
    now[0] += GRACE_S - 0.1
    keeper.step()
    time.sleep(0.2)
    assert is_alive(pid)
    now[0] += 0.1
    until(keeper, "ended")
    assert not is_alive(pid)


def test_a_drain_goes_on_with_the_next_keeper(folder: Path) -> None:
    first = keeper_of(charge(), folder)
    until(first, "up")
    os.kill(first.state().pid, signal.SIGSTOP)
    first.drain()
    second = replaced(first)
    assert second.state().condition == "draining"
    os.kill(first.state().pid, signal.SIGCONT)
    until(second, "ended")
    assert not is_alive(first.state().pid)


def test_a_child_that_cannot_start_says_why_and_is_tried_ever_more_rarely(folder: Path) -> None:
    now = [0.0]
    broken = charge(arguments=("serve", "--target", "/nowhere/model.gguf"))
    keeper = Keeper(broken, folder, "192.0.2.1", lambda: now[0])
    tried_at = []
    for num in range(1, 7):
        while keeper.state().num_failed < num:
            keeper.step()
            if keeper.state().pid:
                wait_for(lambda: not is_alive(keeper.state().pid), keeper.state)
            else:
                now[0] += 0.1
        tried_at.append(now[0])
    state = keeper.state()
    assert state.condition == "failed"
    assert "/nowhere/model.gguf" in state.why
    assert not state.why.startswith("error: ")
    pauses = [after - before for before, after in itertools.pairwise(tried_at)]
    assert pauses == sorted(pauses)
    assert pauses[0] < 0.5
    assert MOST_DELAY_S / 2 < pauses[-1] < MOST_DELAY_S + 0.5


def test_a_taken_port_is_passed_over_and_a_full_range_is_told(folder: Path) -> None:
    what = charge(ports=free_ports(2))
    first, last = what.ports
    with socket.create_server(("127.0.0.1", first)):
        keeper = keeper_of(replace(what, port=first), folder)
        until(keeper, "up")
        assert keeper.state().server == f"127.0.0.1:{last}"
        other = keeper_of(replace(what, name="chat-1", port=first), folder)
        until(other, "failed")
        assert f"all ports from {first} to {last} are taken" in other.state().why


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    keeper = keeper_of(charge(), tmp_path / "file" / "run")
    until(keeper, "failed")
    assert "cannot be written" in keeper.state().why


def test_a_number_that_another_process_has_now_is_left_alone(folder: Path) -> None:
    """As after a restart of the machine."""
    what = charge()
    files.make_private(folder)
    mine = Process(os.getpid(), "another birth")
    files.write(folder / f"chat-0{files.KEPT}", Kept("chat-0", "chat", "x", mine, what.port))
    keeper = keeper_of(what, folder)
    until(keeper, "up")
    assert keeper.state().pid != os.getpid()


def test_a_child_outlives_who_started_it_and_his_whole_group(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from multispin.cluster.process import start\n"
        "out = Path(sys.argv[1])\n"
        "child = start(['sleep', '60'], out, out, {'PATH': '/usr/bin:/bin'})\n"
        "print(child.pid, child.birth, flush=True); time.sleep(60)"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert starter.stdout is not None
    pid, birth = starter.stdout.readline().split()
    child = Process(int(pid), birth)
    assert child.pid not in children_of(starter.pid)
    os.killpg(starter.pid, signal.SIGKILL)
    starter.communicate()
    assert child.lives
    child.end()
    wait_for(lambda: not child.lives, child)


def test_what_a_child_says_is_for_its_owner_alone(folder: Path) -> None:
    keeper = keeper_of(charge(), folder)
    until(keeper, "up")
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("chat-0.out", "chat-0.log"):
        assert (folder / name).stat().st_mode & 0o077 == 0


def test_a_process_that_was_gone_at_once_does_not_live(tmp_path: Path) -> None:
    gone = start(["true"], tmp_path / "out", tmp_path / "log", {"PATH": "/usr/bin:/bin"})
    wait_for(lambda: not gone.lives, gone)
    gone.end()


def test_who_does_not_end_in_time_is_killed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    deaf = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    stubborn = start(["/bin/sh", "-c", deaf], out, tmp_path / "log", environment())
    gone = start(["true"], tmp_path / "gone", tmp_path / "log", environment())
    try:
        wait_for(lambda: out.read_text() == "ready\n", "not ready")
        stubborn.end()
        time.sleep(0.3)
        assert stubborn.lives
        end_all([stubborn, gone], 0.1)
        assert not stubborn.lives
        assert not gone.lives
    finally:
        stubborn.end(with_force=True)


def test_what_is_meant_for_a_ray_is_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("MULTISPIN_CACHE", "/models")
    ours = environment()
    assert not [name for name in ours if name.startswith("RAY_")]
    assert ours["MULTISPIN_CACHE"] == "/models"


def test_a_list_is_written_when_it_is_another_or_cannot_be_read(folder: Path) -> None:
    keeper = keeper_of(charge(), folder)
    path = folder / f"chat-0{files.LIST}"
    first, second = (ReplicaList([ListedTarget(name)], []) for name in ("chat", "other"))
    keeper.list_replicas(first)
    written = path.stat().st_ino
    keeper.list_replicas(first)
    assert path.stat().st_ino == written  # directories need not read it again
    for listed in (second, first):
        path.write_text("{" if listed is first else path.read_text())
        keeper.list_replicas(listed)
        assert read_replica_list(path) == listed


def test_a_child_that_served_for_a_while_is_none_that_cannot_start(folder: Path) -> None:
    now = [0.0]
    keeper = Keeper(charge(), folder, "192.0.2.1", lambda: now[0])
    for served_s in (0.5 * SETTLED_S, SETTLED_S):
        now[0] += MOST_DELAY_S
        until(keeper, "up")
        now[0] += served_s
        pid = keeper.state().pid
        kill(pid)
        wait_for(lambda pid=pid: not is_alive(pid), pid)
        keeper.step()
        assert keeper.state().num_failed == 1
