"""Hugging Face as a source: whatever the connection does, the file is whole or refused."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from catalog_helpers import CONTENT, catalog_of, hub_source
from fake_hub import FakeHub

from multispin.catalog.hub import Hub
from multispin.catalog.progress import silent
from multispin.errors import BadInput, ModelUnavailable

MakeHub = Callable[..., FakeHub]
HF_SPEC = "hf:owner/repo/sub/tiny.gguf"
PULL = "import sys; from multispin.catalog import find_model; print(find_model(sys.argv[1]))"


def pull(folder: Path, hub: FakeHub, spec: str = "tiny") -> Path:
    return catalog_of(folder, hub_source(hub)).find(spec, progress=silent, offline=False)


def puller(folder: Path, hub: FakeHub) -> subprocess.Popen[str]:
    """A real process on the public interface."""
    environ = os.environ | {"MULTISPIN_CACHE": str(folder), "HF_ENDPOINT": hub.endpoint}
    return subprocess.Popen(
        [sys.executable, "-c", PULL, HF_SPEC], env=environ, stdout=subprocess.PIPE, text=True
    )


def test_pulls_once_and_reports_every_byte_in_order(tmp_path: Path, make_hub: MakeHub) -> None:
    hub = make_hub()
    seen: list[tuple[int, int]] = []
    catalog = catalog_of(tmp_path, hub_source(hub))
    file = catalog.find(
        "tiny", progress=lambda done, total, _: seen.append((done, total)), offline=False
    )
    assert file.read_bytes() == CONTENT
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert {total for _, total in seen} == {len(CONTENT)}

    num_requests = len(hub.requests)
    assert catalog.find("tiny", progress=silent, offline=False) == file
    assert len(hub.requests) == num_requests
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "tiny.gguf",
        "tiny.gguf.lock",
        "tiny.gguf.ok",
    ]


def test_cut_connections_are_resumed_at_the_byte(tmp_path: Path, make_hub: MakeHub) -> None:
    hub = make_hub(cuts=[300_000, 200_000, 0])
    assert pull(tmp_path, hub).read_bytes() == CONTENT
    assert hub.ranges == [None, "bytes=300000-", "bytes=500000-", "bytes=500000-"]
    assert hub.num_sent == len(CONTENT)


def test_a_transfer_that_stalls_is_taken_up_again(tmp_path: Path, make_hub: MakeHub) -> None:
    hub = make_hub(cuts=[300_000], hangs=True)
    source = Hub(hub.endpoint, None, stall_s=0.5)
    file = catalog_of(tmp_path, source).find("tiny", progress=silent, offline=False)
    assert file.read_bytes() == CONTENT
    assert hub.ranges == [None, "bytes=300000-"]


def test_a_server_without_ranges_starts_over(tmp_path: Path, make_hub: MakeHub) -> None:
    hub = make_hub(cuts=[300_000], knows_ranges=False)
    seen: list[int] = []
    catalog = catalog_of(tmp_path, hub_source(hub))
    file = catalog.find("tiny", progress=lambda done, *_: seen.append(done), offline=False)
    assert file.read_bytes() == CONTENT
    assert hub.num_sent > len(CONTENT)
    assert seen == sorted(seen)


def test_gives_up_on_a_hub_that_always_cuts_and_keeps_what_came(
    tmp_path: Path, make_hub: MakeHub
) -> None:
    hub = make_hub(cuts=[300_000, 0, 0, 0])
    with pytest.raises(ModelUnavailable, match="ended at byte 300000"):
        pull(tmp_path, hub)
    assert not (tmp_path / "tiny.gguf").exists()
    assert pull(tmp_path, hub).read_bytes() == CONTENT
    assert hub.num_sent == len(CONTENT)


@pytest.mark.parametrize(
    "wrong",
    [CONTENT[:-1] + b"x", CONTENT + b"x", CONTENT[:-1], b"<html>" + CONTENT[6:]],
    ids=["flipped", "longer", "shorter", "html"],
)
@pytest.mark.parametrize("lies", [True, False])
def test_wrong_bytes_are_refused(
    tmp_path: Path, make_hub: MakeHub, wrong: bytes, lies: bool
) -> None:
    truth = hashlib.sha256(CONTENT).hexdigest()
    hub = make_hub(wrong, sha256=truth if lies else None)
    with pytest.raises(ModelUnavailable, match=r"Hugging Face: .*(another|wrong) file"):
        pull(tmp_path, hub)
    assert not (tmp_path / "tiny.gguf").exists()
    if not lies:
        assert hub.ranges == []  # what it announced was enough to refuse
    hub.content, hub.sha256 = CONTENT, None
    assert pull(tmp_path, hub).read_bytes() == CONTENT


def test_hf_files_are_checked_by_the_hash_that_the_hub_announces(
    tmp_path: Path, make_hub: MakeHub
) -> None:
    hub = make_hub(CONTENT[:-1] + b"x", sha256=hashlib.sha256(CONTENT).hexdigest())
    with pytest.raises(ModelUnavailable, match="wrong file"):
        pull(tmp_path, hub, HF_SPEC)
    hub.content = CONTENT
    assert pull(tmp_path, hub, HF_SPEC) == tmp_path / "hf/owner/repo/sub/tiny.gguf"


def test_hf_files_must_be_gguf(tmp_path: Path, make_hub: MakeHub) -> None:
    with pytest.raises(ModelUnavailable, match="no GGUF"):
        pull(tmp_path, make_hub(b"not a model"), HF_SPEC)


@pytest.mark.parametrize("error", [-1, 1])
def test_hf_files_must_be_as_long_as_announced(
    tmp_path: Path, make_hub: MakeHub, error: int
) -> None:
    hub = make_hub(sha256="not-a-hash", announced=len(CONTENT) + error)
    with pytest.raises(ModelUnavailable, match=r"is longer than|ended at byte"):
        pull(tmp_path, hub, HF_SPEC)


def test_a_new_version_is_not_glued_to_the_partial_of_an_old_one(
    tmp_path: Path, make_hub: MakeHub
) -> None:
    hub = make_hub(cuts=[300_000, 0, 0, 0])
    with pytest.raises(ModelUnavailable):
        pull(tmp_path, hub, HF_SPEC)
    hub.content = b"GGUF, but other" + bytes(500_000)
    assert pull(tmp_path, hub, HF_SPEC).read_bytes() == hub.content


def test_large_files_are_redirected_and_the_token_stays_at_the_hub(
    tmp_path: Path, make_hub: MakeHub
) -> None:
    storage = make_hub(sha256="not-a-hash", cuts=[300_000])
    hub = make_hub(storage=storage)
    catalog = catalog_of(tmp_path, hub_source(hub, token="secret"))
    file = catalog.find(HF_SPEC, progress=silent, offline=False)
    assert file.read_bytes() == CONTENT
    assert {token for _, _, token in hub.requests} == {"Bearer secret"}
    assert [(method, token) for method, _, token in storage.requests] == [("GET", None)] * 2
    assert storage.num_sent == len(CONTENT)


def test_a_renamed_repository_still_gets_the_token(tmp_path: Path, make_hub: MakeHub) -> None:
    hub = make_hub()
    catalog = catalog_of(tmp_path, hub_source(hub, token="secret"))
    catalog.find("hf:owner/old/tiny.gguf", progress=silent, offline=False)
    assert [(method, token) for method, _, token in hub.requests] == [
        ("HEAD", "Bearer secret"),
        ("HEAD", "Bearer secret"),
        ("GET", "Bearer secret"),
        ("GET", "Bearer secret"),
    ]


@pytest.mark.parametrize(
    ("status", "remedy"), [(404, "no such file"), (401, "HF_TOKEN"), (503, "answered 503")]
)
def test_refusals_say_what_to_do(
    tmp_path: Path, make_hub: MakeHub, status: int, remedy: str
) -> None:
    with pytest.raises(ModelUnavailable, match=remedy) as caught:
        pull(tmp_path, make_hub(statuses=[status] * 4))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", ["stalls", "dribbles"])
def test_a_silent_hub_costs_no_more_than_the_contact_time(
    tmp_path: Path, make_hub: MakeHub, fault: str
) -> None:
    source = Hub(make_hub(**{fault: True}).endpoint, None, contact_s=0.5)
    start = time.monotonic()
    with pytest.raises(ModelUnavailable, match=r"no answer .* in 0\.5 s|timed out"):
        catalog_of(tmp_path, source).find("tiny", progress=silent, offline=False)
    assert time.monotonic() - start < 5.0  # ten times the bound, for a busy machine


def test_a_port_that_nobody_listens_on(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        source = Hub(f"http://127.0.0.1:{taken.getsockname()[1]}", None)
        with pytest.raises(ModelUnavailable, match="not reachable"):
            catalog_of(tmp_path, source).find("tiny", progress=silent, offline=False)


def test_kill_9_midway_then_resume_fetches_no_byte_twice(tmp_path: Path, make_hub: MakeHub) -> None:
    hub = make_hub(b"GGUF" + os.urandom(8_000_000), bytes_per_s=4e6)
    first = puller(tmp_path, hub)
    partial = tmp_path / "hf/owner/repo/sub/tiny.gguf.pull"
    deadline = time.monotonic() + 10
    while sum(path.stat().st_size for path in partial.rglob("*") if path.is_file()) < 1_000_000:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not (partial.parent / "tiny.gguf").exists()
    (kept,) = (path.stat().st_size for path in partial.rglob("*") if path.is_file())

    hub.bytes_per_s = None
    again = puller(tmp_path, hub)
    out, _ = again.communicate(timeout=20)
    assert Path(out.strip()).read_bytes() == hub.content
    assert hub.ranges == [None, f"bytes={kept}-"]


def test_two_processes_pull_at_once_and_one_transfers(tmp_path: Path, make_hub: MakeHub) -> None:
    hub = make_hub(b"GGUF" + os.urandom(3_000_000), bytes_per_s=2e6)
    both = [puller(tmp_path, hub) for _ in range(2)]
    for process in both:
        out, _ = process.communicate(timeout=20)
        assert process.returncode == 0
        assert Path(out.strip()).read_bytes() == hub.content
    assert hub.num_sent == len(hub.content)
    assert len(hub.ranges) == 1


@pytest.mark.parametrize(
    "spec",
    [
        "hf:owner/tiny.gguf",
        "hf:owner/repo/tiny.bin",
        "hf:owner/../tiny.gguf",
        "hf:owner/repo/../../tiny.gguf",
        "hf:owner/repo//tiny.gguf",
        "hf:owner/repo/tiny-00001-of-00002.gguf",
        "hf:",
    ],
)
def test_malformed_hf_specs(tmp_path: Path, spec: str) -> None:
    with pytest.raises(BadInput, match="MODEL = hf:"):
        catalog_of(tmp_path).local_path(spec)
