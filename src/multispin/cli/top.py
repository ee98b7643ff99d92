"""`multispin top`: a server's cell, live; or a directory's replicas and all their devices."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from multispin.cli import options
from multispin.cli.terminal import printable
from multispin.errors import MultispinError, PeerError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from multispin.api.cell_state import Cell, CellDevice, CellReplica

REFRESH_S = 1.0
WIDTH = 100  # where there is no terminal that has one
NUM_OTHER_LINES = 7  # of a frame, besides the devices'
NUM_HEAD_LINES = 4  # of a table, besides its rows
NONE = "–"


def top(
    server: options.Server = f"127.0.0.1:{options.DEFAULT_PORT}",
    token: options.Token = None,
    token_file: options.TokenFile = None,
    ca: options.Ca = None,
    cert: options.Cert = None,
    key: options.Key = None,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and end.")] = False,
) -> None:
    """Show a server's cell, or a directory's replicas, once a second; q or Ctrl-C ends."""
    from rich.console import Console

    from multispin.cli.endpoint import HttpEndpoint

    address = options.address(server, token, token_file, ca, cert, key)
    endpoint = HttpEndpoint(address, "--server", "start one with `multispin serve`")

    def look() -> Cell:
        return read_cell(endpoint.get("/api/cell"))

    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    first = look()
    if once:
        console.print(frame(first, server))
    elif console.is_terminal and not console.is_dumb_terminal:
        with contextlib.suppress(KeyboardInterrupt):
            _watch(console, server, first, look)
    else:
        with contextlib.suppress(KeyboardInterrupt):
            _go_on(console, server, first, look)


def read_cell(data: bytes) -> Cell:
    import msgspec

    from multispin.api.cell_state import Cell

    try:
        return msgspec.json.decode(data, type=Cell)
    except msgspec.DecodeError:
        raise PeerError(
            "the answer to GET /api/cell is none of this version's: install the same version of "
            "multispin on both sides",
            code="version_mismatch",
        ) from None


# --- live ----------------------------------------------------------------------------------------


def _watch(console: Console, server: str, cell: Cell, look: Callable[[], Cell]) -> None:
    """On the terminal's other screen, until q is pressed. A server that does not answer is waited
    for, with the last frame in view."""
    from rich.live import Live

    trouble = ""
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            num_replicas = len(cell.replicas) + NUM_HEAD_LINES if cell.replicas else 0
            num_devices = max(console.height - NUM_OTHER_LINES - num_replicas, 1)
            live.update(frame(cell, server, trouble, num_devices), refresh=True)
            if pressed(REFRESH_S) == "q":
                return
            try:
                cell, trouble = look(), ""
            except MultispinError as error:
                trouble = str(error)


def _go_on(console: Console, server: str, cell: Cell, look: Callable[[], Cell]) -> None:
    """Frame after frame, for a pipe or a terminal that can do no better."""
    while True:
        console.print(frame(cell, server))
        time.sleep(REFRESH_S)
        cell = look()


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """What waits for a key, so many seconds at most; where there are none, it only waits."""
    if sys.platform == "win32" or not sys.stdin.isatty():
        yield _sleep
        return
    import select
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)

    def pressed(seconds: float) -> str:
        readable, _, _ = select.select([sys.stdin], [], [], seconds)
        return sys.stdin.read(1) if readable else ""

    try:
        tty.setcbreak(sys.stdin)
        yield pressed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _sleep(seconds: float) -> str:
    time.sleep(seconds)
    return ""


# --- a frame -------------------------------------------------------------------------------------


def frame(cell: Cell, server: str, trouble: str = "", num_devices: int = 1024) -> RenderableType:
    """What is shown of a cell: sums above, a line for each replica, and below a line for each of
    the first ``num_devices``."""
    from rich.console import Group
    from rich.text import Text

    parts = [*_sums(cell, server)]
    if cell.replicas:
        parts.append(_replicas(cell.replicas))
    parts.append(_devices(cell.devices[:num_devices]))
    if (num_more := len(cell.devices) - num_devices) > 0:
        parts.append(Text(f"and {num_more} more devices", "dim"))
    if trouble:
        parts.append(Text(f"no news: {printable(trouble)}", "bold red"))
    return Group(*parts)


def _sums(cell: Cell, server: str) -> Iterator[RenderableType]:
    from rich.text import Text

    policy = cell.policy or "none: each device decides"
    title = f"{server}  target {cell.target}  mode {cell.mode}  policy {policy}"
    yield Text(printable(title), "bold")
    alone = cell.without_drafter
    yield Text(
        f"{_count(cell.num_sessions, 'session')}, {alone.num_sessions} of them without a drafter; "
        f"{_count(len(cell.devices), 'device')}; goodput {cell.goodput_tokens_per_s:.1f} tokens/s; "
        f"accepted {_percent(cell.acceptance)}"
    )
    passes = cell.passes
    yield Text(
        f"verification: {passes.rows_mean:.1f} rows in {1e3 * passes.seconds_mean:.1f} ms, "
        f"{passes.busy_share:.0%} of the time; "
        f"{_count(cell.counters['num_errors'], 'error')} so far"
    )


def _replicas(replicas: list[CellReplica]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True)
    table.add_column("replica", ratio=1, no_wrap=True)
    table.add_column("target", no_wrap=True)
    table.add_column("condition", no_wrap=True)
    for name in ("sessions", "rows waiting", "verdict", "tokens/s", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    for replica in replicas:
        table.add_row(
            Text(printable(replica.name)),
            Text(printable(replica.target)),
            Text(printable(replica.condition), "" if replica.condition == "ok" else "bold red"),
            f"{replica.num_sessions} of {replica.max_sessions}",
            str(replica.num_rows_waiting),
            f"{1e3 * replica.s_per_verdict:.1f} ms" if replica.s_per_verdict else NONE,
            f"{replica.goodput_tokens_per_s:.1f}",
            str(replica.num_committed_tokens),
        )
    return table


def _devices(devices: list[CellDevice]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True)
    table.add_column("device", justify="right")
    table.add_column("drafter", ratio=1, no_wrap=True)
    for name in ("sessions", "draft length", "share", "accepted", "tokens/s", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    for device in devices:
        number = f"{device.replica} {device.device}" if device.replica else str(device.device)
        table.add_row(
            Text(printable(number)),
            Text(printable(device.drafter)),
            str(device.num_sessions),
            str(device.draft_length),
            _percent(device.bandwidth_share),
            _percent(device.acceptance),
            f"{device.goodput_tokens_per_s:.1f}",
            str(device.num_committed_tokens),
        )
    return table


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{share:.0%}"
