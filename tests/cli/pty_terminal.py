"""A command in a pseudo-terminal: type, and wait for what it shows."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

TIMEOUT_S = 30.0
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[()][0-9A-B]|\x1b[=>]")
CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"


# In a session of its own, so that the terminal is its terminal and Ctrl-C its signal.
LAUNCH = (
    "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
    "from multispin.cli import main; main()"
)


class Terminal:
    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.raw = ""
        self._process = process
        self._descriptor = descriptor
        self._seen = 0  # of the text, by expect

    @property
    def text(self) -> str:
        """All that was shown, without what moves the cursor and colours."""
        return ESCAPES.sub("", self.raw).replace("\r", "")

    def type(self, text: str) -> None:
        os.write(self._descriptor, text.encode())

    def expect(self, wanted: str) -> str:
        """Wait for a text behind the last expected one; what came between."""
        deadline = time.monotonic() + TIMEOUT_S
        while (at := self.text.find(wanted, self._seen)) < 0:
            if not self._read(deadline - time.monotonic()):
                raise AssertionError(f"no {wanted!r} in {self.text[self._seen :]!r}")
        between = self.text[self._seen : at]
        self._seen = at + len(wanted)
        return between

    def wait(self) -> int:
        """Read to the end; the exit code."""
        deadline = time.monotonic() + TIMEOUT_S
        while self._read(deadline - time.monotonic()):
            pass
        assert time.monotonic() < deadline, f"it does not end: {self.text[-500:]!r}"
        return self._process.wait(TIMEOUT_S)

    @property
    def settings(self) -> list:
        return termios.tcgetattr(self._descriptor)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._descriptor)

    def _read(self, seconds: float) -> bool:
        readable, _, _ = select.select([self._descriptor], [], [], max(seconds, 0))
        if not readable:
            return False
        try:
            data = os.read(self._descriptor, 1 << 16)
        except OSError:  # Linux: the other end is closed
            return False
        self.raw += data.decode(errors="replace")
        return bool(data)


@contextmanager
def terminal(
    *arguments: str, term: str = "xterm-256color", size: tuple[int, int] = (30, 110)
) -> Iterator[Terminal]:
    """`multispin` with these arguments, and a terminal of its own."""
    descriptor, far = os.openpty()
    fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, *arguments],
        stdin=far,
        stdout=far,
        stderr=far,
        start_new_session=True,
        env={**os.environ, "TERM": term},
    )
    os.close(far)
    it = Terminal(process, descriptor)
    try:
        yield it
    finally:
        it.close()
