"""Ports that are free, and waiting for what is to come true."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable

PATIENCE_S = 60.0


def free_ports(num: int) -> tuple[int, int]:
    """First and last of so many in a row, below those that the system gives out."""
    while True:
        first = random.SystemRandom().randrange(20_000, 30_000)
        if all(is_free(port) for port in range(first, first + num)):
            return first, first + num - 1


def is_free(port: int) -> bool:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def wait_for(holds: Callable[[], bool], what: object, patience_s: float = PATIENCE_S) -> None:
    """Until it holds; ``what`` is told when that takes too long."""
    end = time.monotonic() + patience_s
    while not holds():
        shown = what() if callable(what) else what
        assert time.monotonic() < end, shown
        time.sleep(0.05)
