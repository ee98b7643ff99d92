"""How a pull tells the person that it moves."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Called now and then: ``done_bytes`` never falls while ``what`` stays the same."""

    def __call__(self, done_bytes: int, total_bytes: int, what: str) -> None: ...


def silent(done_bytes: int, total_bytes: int, what: str) -> None:
    """The progress of those who do not want to know."""


@contextmanager
def progress_on_stderr() -> Iterator[Progress]:
    """A bar on standard error; where that is no terminal, a plain line every tenth."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console  # noqa: PLC0415 - start-up time
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        DownloadColumn,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars  # noqa: PLC0415

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def show(done_bytes: int, total_bytes: int, what: str) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total_bytes)
            bars.update(tasks[what], completed=done_bytes)

        yield show


class _Lines:
    def __init__(self) -> None:
        self._tenth: dict[str, int] = {}

    def __call__(self, done_bytes: int, total_bytes: int, what: str) -> None:
        tenth = 10 * done_bytes // max(total_bytes, 1)
        if tenth > self._tenth.get(what, -1):
            self._tenth[what] = tenth
            mb = f"{done_bytes / 1e6:.0f} of {total_bytes / 1e6:.0f} MB"
            print(f"{what}: {10 * tenth} % ({mb})", file=sys.stderr, flush=True)
