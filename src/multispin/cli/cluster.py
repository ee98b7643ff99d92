"""`multispin cluster`: replicas and directories on Ray (docs/cluster.md)."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multispin.cli import options
from multispin.errors import BadInput

if TYPE_CHECKING:
    from multispin.cluster.overview import Overview

app = typer.Typer(no_args_is_help=True)

MAX_WAIT_S = 86_400.0

Name = Annotated[
    str | None,
    typer.Option("--cluster", metavar="NAME", help="Which one, where this machine has several."),
]


@app.command()
def up(
    file: Annotated[Path, typer.Argument(metavar="CLUSTER.toml", help="What is to run.")],
    wait_s: Annotated[
        float, typer.Option(help="Wait so long until all of it serves; 0: not at all.")
    ] = 300.0,
) -> None:
    """Have what the file says: start what lacks, replace what has changed, one after the other.

    Prints the addresses of the directories when everything serves.
    """
    if not 0 <= wait_s <= MAX_WAIT_S:
        raise BadInput("--wait-s", wait_s, f"must lie between 0 and {MAX_WAIT_S:g}")
    from multispin.cell.deployment import load_deployment
    from multispin.cluster import commands

    deployment = load_deployment(file)
    for address in asyncio.run(commands.up(deployment, wait_s, _say)):
        print(address)


@app.command()
def status(cluster: Name = None, as_json: options.Json = False) -> None:
    """Show replicas and directories: where they are, what they do, why they do not."""
    from multispin.cluster import commands

    overview = asyncio.run(commands.look(commands.named(cluster)))
    if as_json:
        import msgspec

        print(msgspec.json.encode(commands.told(overview)).decode())
    else:
        _show(overview)


@app.command()
def drain(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of a replica, as in `status`.")],
    cluster: Name = None,
) -> None:
    """Send a replica's sessions off and end it; another comes where there would be too few."""
    from multispin.cluster import commands

    asyncio.run(commands.drain(commands.named(cluster), name))
    _say(f"{name}: drains")


@app.command()
def scale(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="As in CLUSTER.toml.")],
    number: Annotated[str, typer.Argument(metavar="N|MIN:MAX", help="Replicas of it.")],
    cluster: Name = None,
) -> None:
    """Have so many replicas of a target, until the next `up`."""
    from multispin.cluster import commands

    least, most = _bounds(number)
    asyncio.run(commands.scale(commands.named(cluster), target, least, most))
    _say(f"{target}: {least} to {most} replicas" if most > least else f"{target}: {most} replicas")


@app.command()
def down(cluster: Name = None) -> None:
    """Drain and end everything, and stop the Ray that `up` started, if it did."""
    from multispin.cluster import commands

    asyncio.run(commands.down(commands.named(cluster), _say))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _bounds(number: str) -> tuple[int, int]:
    from multispin.cell.cluster_sections import MAX_REPLICAS

    least, _, most = number.partition(":")
    try:
        bounds = int(least), int(most or least)
    except ValueError:
        raise BadInput("N|MIN:MAX", number, "must be a number, or two as in 2:5") from None
    if not 1 <= bounds[0] <= bounds[1] <= MAX_REPLICAS:
        remedy = f"must lie between 1 and {MAX_REPLICAS}, and MAX not below MIN"
        raise BadInput("N|MIN:MAX", number, remedy)
    return bounds


def _show(overview: Overview) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "node", "address", "condition"):
        table.add_column(heading)
    for heading in ("sessions", "tokens/s", "restarts"):
        table.add_column(heading, justify="right")
    for row in overview.rows:
        keeper = row.keeper
        sessions = "–" if row.num_sessions is None else str(row.num_sessions)
        goodput = row.goodput_tokens_per_s
        table.add_row(
            keeper.name,
            keeper.node or "–",
            keeper.server or "–",
            row.condition,
            sessions,
            "–" if goodput is None else f"{goodput:.1f}",
            str(keeper.num_restarts),
        )
    console.print(table)
    for row in overview.rows:
        if row.keeper.why:
            console.print(f"{row.keeper.name}: {row.keeper.why}")
    if overview.trouble:
        console.print(f"degraded: {overview.trouble}")
