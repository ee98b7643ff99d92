"""A disk that is full: one line that says so, and nothing half-written in a file's place."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from multispin.cli import profile
from multispin.errors import BadInput
from multispin.lm.record import write_record
from tests.recording import small_record


@contextmanager
def room_for(num_bytes: int) -> Iterator[None]:
    """Files grow no longer than this, which looks to their writer as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_record_that_finds_no_room_leaves_the_old_one(tmp_path: Path) -> None:
    old = small_record()
    write_record(tmp_path / "it.record", old)
    before = (tmp_path / "it.record").read_bytes()
    with room_for(100), pytest.raises(OSError):
        write_record(tmp_path / "it.record", msgspec.structs.replace(old, target="other"))
    assert [file.name for file in tmp_path.iterdir()] == ["it.record"]
    assert (tmp_path / "it.record").read_bytes() == before


def test_a_profile_that_finds_no_room_is_not_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = "# a cell\n" * 100
    with room_for(100), pytest.raises(BadInput, match=r"--out = .*: cannot be written"):
        profile._write(tmp_path / "cell.toml", cell)
    assert list(tmp_path.iterdir()) == []  # or the next try would find it there already
    assert capsys.readouterr().err == cell
    profile._write(tmp_path / "cell.toml", cell)
    with pytest.raises(BadInput):
        profile._write(tmp_path / "cell.toml", "other")
    assert (tmp_path / "cell.toml").read_text() == cell


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_output_that_finds_no_room_ends_with_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "multispin", "models", "list", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "error: no space left on the disk where the output goes\n"
