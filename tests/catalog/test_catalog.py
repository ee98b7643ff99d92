"""The cache: what is verified is used without a network, what is damaged is never returned."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from catalog_helpers import CONTENT, catalog_of, hub_source, model_of
from fake_hub import FakeHub
from filelock import FileLock

from multispin import catalog as public
from multispin.catalog import store
from multispin.catalog.catalog import Catalog
from multispin.catalog.hub import Hub
from multispin.catalog.progress import silent
from multispin.errors import BadInput, ModelUnavailable

MakeHub = Callable[..., FakeHub]


@pytest.fixture
def warm(tmp_path: Path, make_hub: MakeHub) -> tuple[Catalog, FakeHub, Path]:
    hub = make_hub()
    catalog = catalog_of(tmp_path, hub_source(hub))
    file = catalog.find("tiny", progress=silent, offline=False)
    hub.requests.clear()
    return catalog, hub, file


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(1, 1))


def truncate(file: Path) -> None:
    os.truncate(file, 1000)


@pytest.mark.parametrize("harm", [flip, truncate, Path.unlink])
def test_a_damaged_file_is_never_returned(
    warm: tuple[Catalog, FakeHub, Path], harm: Callable[[Path], None]
) -> None:
    catalog, hub, file = warm
    harm(file)
    assert catalog.local_path("tiny") is None
    with pytest.raises(ModelUnavailable, match=r"offline mode forbids .* models pull tiny"):
        catalog.find("tiny", progress=silent, offline=True)
    assert hub.requests == []
    assert catalog.find("tiny", progress=silent, offline=False).read_bytes() == CONTENT
    assert hub.ranges == [None]


def test_a_touched_but_whole_file_is_hashed_again_and_kept(
    warm: tuple[Catalog, FakeHub, Path],
) -> None:
    catalog, hub, file = warm
    os.utime(file, ns=(1, 1))
    assert catalog.find("tiny", progress=silent, offline=False) == file
    assert hub.requests == []
    assert store._read_record(file) == store._Record(len(CONTENT), 1, str(model_of().sha256))


def test_a_file_with_a_lost_or_mangled_record_is_hashed_again(
    warm: tuple[Catalog, FakeHub, Path],
) -> None:
    catalog, _, file = warm
    for mangled in (b"", b"{}", b"[1]", b'{"num_bytes":"x"}'):
        store._record_path(file).write_bytes(mangled)
        assert catalog.local_path("tiny") == file
    store._record_path(file).unlink()
    assert catalog.local_path("tiny") == file


def test_a_record_alone_vouches_for_no_other_model(tmp_path: Path) -> None:
    """A file with a fresh record, but not with the catalog's hash."""
    other = b"GGUF" + bytes(len(CONTENT) - 4)
    download = tmp_path / "download"
    download.write_bytes(other)
    store.install(download, tmp_path / "tiny.gguf", "0" * 64)
    assert catalog_of(tmp_path).local_path("tiny") is None


def test_a_verified_file_is_not_hashed_at_every_load(
    warm: tuple[Catalog, FakeHub, Path],
) -> None:
    """Shown by damage that leaves size and time alone: the one kind that a record cannot see."""
    catalog, _, file = warm
    stat = file.stat()
    flip(file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert catalog.local_path("tiny") == file


def test_a_pulled_hf_file_needs_no_network_later(tmp_path: Path, make_hub: MakeHub) -> None:
    catalog = catalog_of(tmp_path, hub_source(make_hub()))
    spec = "hf:owner/repo/tiny.gguf"
    file = catalog.find(spec, progress=silent, offline=False)
    assert catalog_of(tmp_path).find(spec, progress=silent, offline=True) == file
    flip(file)
    assert catalog.local_path(spec) is None


def test_sources_are_tried_in_order_and_all_named_when_all_fail(
    tmp_path: Path, make_hub: MakeHub
) -> None:
    bad, good = make_hub(statuses=[404]), make_hub()
    assert catalog_of(tmp_path / "a", hub_source(bad), hub_source(good)).find(
        "tiny", progress=silent, offline=False
    )
    bad.statuses = [404, 503]
    first = Hub(bad.endpoint, None, name="First")
    second = Hub(bad.endpoint, None, name="Second")
    with pytest.raises(ModelUnavailable, match=r"First: .*404.*; Second: .*503") as caught:
        catalog_of(tmp_path / "b", first, second).find("tiny", progress=silent, offline=False)
    assert "\n" not in str(caught.value)


def test_who_waits_says_so_and_uses_the_other_ones_file(tmp_path: Path, make_hub: MakeHub) -> None:
    hub = make_hub()
    catalog = catalog_of(tmp_path, hub_source(hub))
    said: list[str] = []
    waited = threading.Event()

    def progress(done_bytes: int, total_bytes: int, what: str) -> None:
        said.append(what)
        waited.set()

    lock = FileLock(store.lock_path(tmp_path / "tiny.gguf"))
    with lock:
        waiter = threading.Thread(
            target=catalog.find, args=("tiny",), kwargs={"progress": progress, "offline": False}
        )
        waiter.start()
        assert waited.wait(10)
        download = tmp_path / "download"
        download.write_bytes(CONTENT)
        store.install(download, tmp_path / "tiny.gguf", str(model_of().sha256))
    waiter.join(10)
    assert set(said) == {"tiny: another process pulls it"}
    assert hub.requests == []


def test_a_warm_cache_opens_no_socket_and_starts_no_process(tmp_path: Path) -> None:
    """The interpreter itself reports every socket and child process (audit events)."""
    file = tmp_path / "hf/owner/repo/tiny.gguf"
    file.parent.mkdir(parents=True)
    (tmp_path / "download").write_bytes(CONTENT)
    store.install(tmp_path / "download", file, str(model_of().sha256))
    script = """
import sys
def refuse(event, args):
    if event.startswith("socket.") or event in ("subprocess.Popen", "os.fork", "os.exec"):
        raise SystemExit(f"touched the network: {event}")
from multispin.catalog import find_model
sys.addaudithook(refuse)
print(find_model(sys.argv[1]))
"""
    environ = os.environ | {"MULTISPIN_CACHE": str(tmp_path)}
    environ.pop("MULTISPIN_OFFLINE", None)

    def run(spec: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script, spec],
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )

    warm = run("hf:owner/repo/tiny.gguf")
    assert (warm.stdout.strip(), warm.stderr) == (str(file), "")
    cold = run("smollm2-135m")  # the hook does catch what a pull does
    assert cold.returncode != 0
    assert "touched the network" in cold.stderr + cold.stdout


def test_an_unwritable_cache_is_one_line(tmp_path: Path, make_hub: MakeHub) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelUnavailable, match=r"cannot write in .*MULTISPIN_CACHE"):
        catalog_of(tmp_path / "file" / "cache", hub_source(make_hub())).find(
            "tiny", progress=silent, offline=False
        )


def test_unknown_names_list_the_choices_and_the_nearest() -> None:
    with pytest.raises(BadInput) as caught:
        public.find_model("smollm-135m")
    message = str(caught.value)
    assert message.startswith("MODEL = smollm-135m: did you mean smollm2-135m?")
    assert all(model.name in message for model in public.entries())
    with pytest.raises(BadInput, match="MODEL = :"):
        public.find_model("")


def test_own_files(tmp_path: Path) -> None:
    file = tmp_path / "mine.gguf"
    for spec in (str(file), str(tmp_path), "~nobody-at-all/x.gguf"):
        with pytest.raises(BadInput, match="is no file"):
            public.find_model(spec)
    file.write_bytes(b"PK..")
    with pytest.raises(BadInput, match="no GGUF file"):
        public.find_model(str(file))
    file.write_bytes(b"GGUF....")
    assert public.find_model(str(file), offline=True) == file
    assert public.local_path(str(file)) == file


def test_cache_dir_follows_the_environment(tmp_path: Path) -> None:
    assert store.cache_dir({"MULTISPIN_CACHE": str(tmp_path)}) == tmp_path
    assert store.cache_dir({}).parts[-2:] == ("multispin", "models")


def test_the_public_names() -> None:
    assert all(hasattr(public, name) for name in public.__all__)
