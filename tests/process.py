"""Processes of ours, and what Linux tells about them: memory, file descriptors, children."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(pid: int | str = "self") -> int:
    """0 where the system does not say."""
    try:
        return PAGE * int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0


def num_descriptors(pid: int | str = "self") -> int:
    """Open file descriptors; 0 where the system does not say."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def loopback_address(number: int) -> tuple[str, int] | None:
    """Of a peer of its own on this machine, to connect from; None where there is only one."""
    if sys.platform != "linux":
        return None
    return f"127.{1 + number // 62_500 % 250}.{number // 250 % 250}.{1 + number % 250}", 0


def children_of(pid: int) -> list[int]:
    """Processes that this one has started and not waited for."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            stat = (folder / "stat").read_text()
        except OSError:
            continue  # it has ended meanwhile
        if int(stat.rpartition(")")[2].split()[1]) == pid:
            found.append(int(folder.name))
    return found


@contextmanager
def served(*arguments: str, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`multispin serve`, and the address that it prints; nothing may go wrong unnoticed in it."""
    command = [sys.executable, "-m", "multispin", "serve", "--port", str(port), *arguments]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address, "the server did not start"
            yield process, address
        except BaseException:
            said.seek(0)
            print("the server said:", said.read()[-2000:], file=sys.stderr)
            raise
        finally:
            process.kill()
            process.communicate()
            said.seek(0)
            told = said.read()
            assert "Traceback" not in told, told[told.index("Traceback") - 500 :][:5000]
