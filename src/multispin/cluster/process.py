"""Processes that outlive who starts them, known by their number and the time of their birth."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

# A shell in a session of its own starts the process and ends at once, so that nobody who ends the
# starter, his group or his children finds it.
_DETACH = 'out=$1 log=$2; shift 2; umask 077; "$@" >"$out" 2>>"$log" </dev/null & printf %s "$!"'


class Process(msgspec.Struct, frozen=True):
    """``birth`` tells it from another one that has its number later; empty: it was gone at once."""

    pid: int
    birth: str

    @property
    def lives(self) -> bool:
        return self.birth != "" and _birth(self.pid) == self.birth

    def end(self, with_force: bool = False) -> None:
        if self.lives:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL if with_force else signal.SIGTERM)


def start(command: Sequence[str], out: Path, log: Path, environment: Mapping[str, str]) -> Process:
    """Standard output replaces ``out``, standard error is added to ``log``; both are private."""
    done = subprocess.run(
        ["/bin/sh", "-c", _DETACH, "sh", str(out), str(log), *command],
        stdout=subprocess.PIPE,
        env=environment,
        cwd="/",
        start_new_session=True,
        check=True,
    )
    pid = int(done.stdout)
    return Process(pid, _birth(pid))


def end_all(processes: Sequence[Process], grace_s: float) -> None:
    """Return when none of them lives any more; who still does after so long is killed."""
    for process in processes:
        process.end()
    end = time.monotonic() + grace_s
    while any(process.lives for process in processes):
        if time.monotonic() > end:
            for process in processes:
                process.end(with_force=True)
        time.sleep(0.1)


def environment() -> dict[str, str]:
    """Ours, without what is meant for a Ray: that of who starts a process is not the process's."""
    return {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}


def _birth(pid: int) -> str:
    """Empty: there is no such process, or it has ended and nobody has asked how."""
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return ""
        state, *fields = stat.rpartition(")")[2].split()
        return "" if state == "Z" else fields[18]
    told = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.split(maxsplit=1)
    return "" if len(told) < 2 or told[0].startswith("Z") else told[1].strip()
