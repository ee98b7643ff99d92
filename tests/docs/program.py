"""Runs a page as its reader would: block after block, servers left running, ports of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.docs.blocks import ROOT, Block

TIMEOUT_S = 120
SERVER, DEVICE = "8600", "8601"  # the ports that pages name
CATALOG = r"qwen2\.5-coder-[\d.]+b|smollm2-135m"
MACHINES = ("", "away")  # the reader's own, and the one that some blocks speak of
ELSEWHERE = r"0\.0\.0\.0|192\.0\.2\.7|edge\.example"

# What a reader has in other terminals goes on in the background once it says that it is ready; a
# new server takes the place of the last on its machine. What shows a view for ever shows it once.
PRELUDE = r"""
set -euo pipefail
multispin() {
    case " $* " in
    *" --print-config "*) "$PYTHON" -m multispin "$@" ;;
    " serve "*) background "serve$MACHINE" "$@" --log-level warning ;;
    " device "*" --port "*) background "device$MACHINE" "$@" --log-level warning ;;
    " top "*" --once "*) "$PYTHON" -m multispin "$@" ;;
    " top "*) "$PYTHON" -m multispin "$@" --once ;;
    *) "$PYTHON" -m multispin "$@" ;;
    esac
}
background() {
    local name=$1
    shift
    if [ -e "$STATE/$name.pid" ]; then kill -KILL "$(cat "$STATE/$name.pid")"; fi
    rm -f "$STATE/$name.out"
    "$PYTHON" -m multispin "$@" >"$STATE/$name.out" 2>"$STATE/$name.err" &
    echo $! >"$STATE/$name.pid"
    for _ in $(seq 600); do
        if [ -s "$STATE/$name.out" ]; then return; fi
        if ! kill -0 $! 2>/dev/null; then break; fi # this shell has reaped it
        sleep 0.1
    done
    cat "$STATE/$name.err"
    return 1
}
make() { command make --directory "$ROOT" --dry-run "$@" >/dev/null; }
python() { "$PYTHON" "$@"; }
"""


class Program:
    """One page in a folder of its own, in which examples/ is what it is in the repository."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "here"
        self._state = folder / "state"
        self._state.mkdir()
        (self._folder / ".venv" / "bin").mkdir(parents=True)
        (self._folder / ".venv" / "bin" / "activate").touch()
        (self._folder / "examples").symlink_to(ROOT / "examples")
        self._ports = {machine: {SERVER: free_port(), DEVICE: free_port()} for machine in MACHINES}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pid in self._state.glob("*.pid"):
            with contextlib.suppress(ProcessLookupError):  # one that did not start
                os.kill(int(pid.read_text()), signal.SIGKILL)

    def run(self, block: Block) -> None:
        """Raises AssertionError where it fails, or prints something else than is said."""
        machine = "away" if re.search(ELSEWHERE, block.code) else ""
        code = self._here(block.code, machine)
        if block.language == "python":
            command = [sys.executable, "-c", code]
        else:
            command = ["bash", "-c", PRELUDE + code]
        # Not through a pipe, which servers would hold open.
        with (self._state / "printed").open("w+b") as printed:
            done = subprocess.run(
                command,
                cwd=self._folder,
                env=os.environ | self._environment(machine),
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                timeout=TIMEOUT_S,
                check=False,
            )
            printed.seek(0)
            text = printed.read().decode()
        assert done.returncode == 0, f"line {block.line}: exit code {done.returncode}\n{text}"
        if block.output is not None:
            said = self._here(block.output, machine)
            assert matches(said, text), f"line {block.line}:\n{text}\nis not what is said:\n{said}"

    def _environment(self, machine: str) -> dict[str, str]:
        ports = self._ports[machine]
        server = f"127.0.0.1:{ports[SERVER]}"
        return {
            "PYTHON": sys.executable,
            "ROOT": str(ROOT),
            "STATE": str(self._state),
            "MACHINE": machine,
            "COLUMNS": "100",
            "MULTISPIN_SERVE_PORT": ports[SERVER],
            "MULTISPIN_REPRODUCE_DRAWS": "2",
            "MULTISPIN_CHAT_DEVICE": f"127.0.0.1:{ports[DEVICE]}",
            **{f"MULTISPIN_{name}_SERVER": server for name in ("COMPLETE", "DEVICE", "TOP")},
        }

    def _here(self, text: str, machine: str) -> str:
        """With what there is here in the place of models to pull, of ports and other machines."""
        for port, free in self._ports[machine].items():
            text = text.replace(port, free)
        return re.sub(ELSEWHERE, "127.0.0.1", re.sub(CATALOG, "ngram", text))


def matches(said: str, printed: str) -> bool:
    """Whether it is the same; ``...`` stands for anything."""
    pattern = ".*".join(re.escape(part) for part in said.split("..."))
    return re.fullmatch(pattern, printed, re.DOTALL) is not None


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
