"""`multispin cluster` with a real Ray on this machine: everything dies once, and nobody else does.

One Ray for all tests, which take their turns in this file.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from multispin.cluster import folder as files
from multispin.cluster import local_ray
from tests.cluster.places import free_ports, is_free, wait_for

pytestmark = pytest.mark.slow
pytest.importorskip("ray")

TEXT = """
[cluster]
name = "{name}"
ray = "{ray}"
ports = [{first}, {last}]
directory_ports = [{directory}]

[[target]]
name = "chat"
model = "{model}"
max_sessions = {max_sessions}
min_replicas = {num}
serve = {{ reproducible = true, ctx_size = 512, drain_s = 1 }}
resources = {{ {resources} }}
"""


class Cluster:
    """The commands, as a person gives them."""

    def __init__(self, home: Path, name: str = "test", **values: object) -> None:
        first, last = free_ports(9)
        self.home = home
        self.name = name
        self.ports = range(first, last + 1)
        self.directory = f"127.0.0.1:{first}"
        self.values = {
            **{"name": name, "ray": "local", "first": first + 1, "last": last},
            **{"directory": first, "model": "ngram", "max_sessions": 8, "num": 3},
            **{"resources": "cpus = 0.1", **values},
        }
        self.environment = {**os.environ, "XDG_STATE_HOME": str(home)}

    @property
    def folder(self) -> Path:
        return self.home / "multispin" / "clusters" / self.name

    def write(self, **values: object) -> Path:
        self.values |= values
        file = self.home / f"{self.name}.toml"
        file.write_text(TEXT.format(**self.values))
        return file

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "multispin", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    def up(self, **values: object) -> subprocess.CompletedProcess[str]:
        return self.run("cluster", "up", str(self.write(**values)), "--wait-s", "120")

    def do(self, *arguments: str) -> str:
        done = self.run("cluster", *arguments, "--cluster", self.name)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status(self) -> dict[str, Any]:
        return json.loads(self.do("status", "--json"))

    def rows(self) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in self.status()["replicas"]}

    def pids(self) -> dict[str, int]:
        """By the keepers' files."""
        kept = files.kept_in(self.folder)
        return {one.name: one.process.pid for one in kept if one.process.lives and one.server}

    def until_up(self, num: int) -> None:
        def holds() -> bool:
            rows = self.rows().values()
            chat = [row["condition"] for row in rows if row["target"] == "chat"]
            return chat == ["up"] * num

        wait_for(holds, self.status)

    def write_a_text(self) -> str:
        arguments = ("--draft", "ngram", "--seed", "1", "--max-tokens", "24", "--json")
        done = self.run("complete", "Once upon", "--server", self.directory, *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["text"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def cluster(home: Path) -> Iterator[Cluster]:
    """Three replicas and a directory; afterwards nothing is left of them, or of Ray."""
    cluster = Cluster(home)
    done = cluster.up()
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{cluster.directory}\n"
    ray = local_ray.running(cluster.folder)
    assert ray is not None
    yield cluster
    pids = [*cluster.pids().values(), *rays_processes(ray.folder)]
    cluster.do("down")
    wait_for(lambda: not any(map(is_alive, pids)), lambda: list(filter(is_alive, pids)))
    assert all(map(is_free, cluster.ports))
    assert not cluster.folder.exists()
    assert not Path(ray.folder).exists()


@pytest.fixture
def whole(cluster: Cluster) -> Cluster:
    """With three replicas that serve."""
    done = cluster.up(num=3, max_sessions=8)
    assert done.returncode == 0, done.stderr
    return cluster


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def rays_processes(part: str) -> list[int]:
    """Whose command line has this."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if part in line:
                found.append(int(folder.name))
    return found


def actors(cluster: Cluster, kind: str) -> list[int]:
    """Ray's processes of this cluster's actors: children of its raylet."""
    ray = local_ray.running(cluster.folder)
    assert ray is not None
    [raylet] = [
        pid
        for pid in rays_processes(f"{ray.folder}/")
        if Path(f"/proc/{pid}/comm").read_text().strip() == "raylet"
    ]
    return [
        pid
        for pid in rays_processes(f"ray::{kind}")
        if int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == raylet
    ]


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_devices_write_by_the_directory(whole: Cluster) -> None:
    rows = whole.rows()
    assert sorted(rows) == ["chat-0", "chat-1", "chat-2", "directory-0"]
    assert {row["condition"] for row in rows.values()} == {"up"}
    assert len({row["server"] for row in rows.values()}) == 4
    assert whole.write_a_text() == whole.write_a_text()


def test_the_same_file_again_changes_nothing(whole: Cluster) -> None:
    before = whole.pids()
    assert whole.up().returncode == 0
    assert whole.pids() == before


def test_a_killed_replica_is_back_and_the_others_are_as_they_were(whole: Cluster) -> None:
    before = whole.pids()
    kill(before["chat-1"])
    wait_for(lambda: whole.pids().get("chat-1", before["chat-1"]) != before["chat-1"], whole.pids)
    whole.until_up(3)
    after = whole.pids()
    assert {name for name in before if after[name] != before[name]} == {"chat-1"}
    assert whole.rows()["chat-1"]["num_restarts"] >= 1


def test_a_killed_directory_is_back_at_its_port(whole: Cluster) -> None:
    before = whole.pids()
    kill(before["directory-0"])
    wait_for(lambda: whole.pids().get("directory-0", 0) not in (0, before["directory-0"]), before)
    whole.write_a_text()


def test_killed_keepers_and_supervisors_are_missed_by_nobody(whole: Cluster) -> None:
    before = whole.pids()
    for kind, num in (("KeeperActor", 4), ("SupervisorActor", 1)):
        pids = actors(whole, kind)
        assert len(pids) == num
        for pid in pids:
            kill(pid)
        wait_for(
            lambda kind=kind, pids=pids, num=num: len(set(actors(whole, kind)) - set(pids)) == num,
            kind,
        )
        whole.write_a_text()
    whole.until_up(3)
    assert whole.pids() == before
    kill(before["chat-0"])  # and the new ones keep
    wait_for(lambda: whole.pids().get("chat-0", before["chat-0"]) != before["chat-0"], whole.pids)


def test_a_drained_replica_is_replaced(whole: Cluster) -> None:
    before = whole.pids()
    whole.do("drain", "chat-2")
    wait_for(lambda: not is_alive(before["chat-2"]), before)
    whole.until_up(3)
    assert {before[name] for name in ("chat-0", "chat-1")} < set(whole.pids().values())


def test_it_scales_up_and_down_and_tells_whom_it_cannot(whole: Cluster) -> None:
    before = whole.pids()
    whole.do("scale", "chat", "4:5")
    whole.until_up(4)
    assert before.items() <= whole.pids().items()
    whole.do("scale", "chat", "2")
    whole.until_up(2)
    assert before["directory-0"] == whole.pids()["directory-0"]
    assert len(whole.pids()) == 3
    for arguments in (("scale", "nobody", "3"), ("drain", "nobody"), ("scale", "chat", "0")):
        done = whole.run("cluster", *arguments)
        assert done.returncode == 2
        assert len(done.stderr.strip().splitlines()) == 1


def test_a_changed_file_replaces_every_replica(whole: Cluster) -> None:
    before = whole.pids()
    assert whole.up(max_sessions=5).returncode == 0
    after = whole.pids()
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] == before[name]} == {"directory-0"}


def test_one_that_cannot_load_says_why_and_the_others_serve(whole: Cluster) -> None:
    other = guest(whole, model="/nowhere/model.gguf", num=1)
    done = other.up()
    assert done.returncode == 1
    assert "/nowhere/model.gguf" in done.stderr
    row = other.rows()["chat-0"]
    assert row["condition"] == "failed"
    assert "/nowhere/model.gguf" in row["why"]
    assert other.up(model="ngram").returncode == 0
    other.do("down")
    assert local_ray.running(whole.folder) is not None
    whole.write_a_text()


def guest(whole: Cluster, **values: object) -> Cluster:
    """Another cluster on the same Ray, by its address."""
    ray = local_ray.running(whole.folder)
    assert ray is not None
    other = Cluster(whole.home, "guest", ray=ray.address, **values)
    token = str(local_ray.token_path(whole.folder))
    other.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token}
    return other


@pytest.mark.parametrize(
    ("resources", "told"),
    [
        ("cpus = 999", "999 CPUs: no machine of this Ray has as much"),
        ("cpus = 0.1, gpus = 1", "1 GPUs: no machine"),
        ("cpus = 0.1, memory_gb = 99999", "GB of memory: no machine"),
        (f"cpus = {os.cpu_count()}", f"3 x {os.cpu_count()} CPUs: this Ray has"),
    ],
)
def test_who_asks_for_more_than_there_is_is_told(whole: Cluster, resources: str, told: str) -> None:
    other = guest(whole, resources=resources)
    done = other.up()
    assert done.returncode == 2
    assert re.fullmatch(r"error: target 'chat'\.resources = .*\n", done.stderr)
    assert told in done.stderr


def test_a_wrong_token_a_stranger_and_nobody_are_told_in_time(whole: Cluster) -> None:
    other = guest(whole)
    other.environment |= {"RAY_AUTH_TOKEN": "0" * 64}
    assert "Ray does not take this machine's token" in one_line(other.up())
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        address = f"127.0.0.1:{stranger.getsockname()[1]}"
        assert address in one_line(other.up(ray=address))
    assert f"no Ray answers at {address}" in one_line(other.up(ray=address))
    assert "HOST:PORT" in one_line(other.up(ray="somewhere"))


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode in (1, 2)
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr


def test_two_at_the_same_time_are_one(whole: Cluster) -> None:
    with files.alone(whole.folder):
        assert "another `multispin cluster` command" in one_line(whole.up())


def test_what_is_kept_outlives_a_lost_head_and_all_of_ray(whole: Cluster) -> None:
    before = whole.pids()
    ray = local_ray.running(whole.folder)
    assert ray is not None
    [head] = [pid for pid in rays_processes(ray.folder) if "gcs_server" in name_of(pid)]
    kill(head)
    degraded(whole, before)
    wait_for(lambda: rays_processes(f"{ray.folder}/") == [], ray, 120.0)
    time.sleep(70.0)  # Ray's own processes end themselves a minute after their head
    degraded(whole, before)
    done = whole.up()
    assert done.returncode == 0, done.stderr
    assert whole.pids() == before
    kill(before["chat-0"])  # and the new keepers keep them
    wait_for(lambda: whole.pids().get("chat-0", before["chat-0"]) != before["chat-0"], whole.pids)


def degraded(whole: Cluster, before: dict[str, int]) -> None:
    status = whole.status()
    assert "no Ray answers" in status["degraded"]
    assert {row["name"]: row["pid"] for row in status["replicas"]} == before
    assert {row["condition"] for row in status["replicas"]} == {"up"}
    whole.write_a_text()


def name_of(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


def test_down_ends_those_that_a_lost_ray_has_left(home: Path, cluster: Cluster) -> None:
    alone = Cluster(home, "alone", num=1)
    assert alone.up().returncode == 0
    pids, ray = list(alone.pids().values()), local_ray.running(alone.folder)
    assert ray is not None
    [head] = [pid for pid in rays_processes(ray.folder) if "gcs_server" in name_of(pid)]
    kill(head)
    alone.do("down")
    assert not any(map(is_alive, pids))
    time.sleep(3)  # keepers, which Ray's end leaves for a while, start nobody
    assert not alone.folder.exists()
    assert all(map(is_free, alone.ports))
    cluster.write_a_text()
