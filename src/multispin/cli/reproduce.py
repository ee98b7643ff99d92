"""``multispin reproduce``: a table and figures, of the paper and of what it leaves open."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multispin.cli import options
from multispin.errors import BadInput

if TYPE_CHECKING:
    from multispin.sim.reproduce.result import Reproduction

MAX_DRAWS = 10_000


def reproduce(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="See --list.")] = None,
    shows_list: Annotated[bool, typer.Option("--list", help="Which there are.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="For figures and CSV; by default reproduce-NAME."),
    ] = None,
    draws: Annotated[
        int | None, typer.Option(help="Draws of devices, channels and prompts to average over.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same figures.")] = 0,
    as_json: options.Json = False,
) -> None:
    """Reproduce a table and its figures: PNG, SVG and CSV."""
    if shows_list:
        _list(as_json)
        return
    if name is None:
        raise BadInput("NAME", "(none)", "say which, or --list")
    options.check_seed(seed)
    if draws is not None and not 2 <= draws <= MAX_DRAWS:
        raise BadInput("--draws", draws, f"must be 2 to {MAX_DRAWS}: an error needs two")

    from multispin.sim.reproduce.families import find, run
    from multispin.sim.reproduce.output import check_output, write

    find(name)
    folder = out or Path(f"reproduce-{name}")
    check_output(folder)
    started = time.perf_counter()
    found = run(name, draws, seed, lambda what: print(f"{name}: {what}", file=sys.stderr))
    files = [str(file) for file in write(found, folder)]
    if as_json:
        import json

        result = found.as_object() | {"files": files, "wall_s": time.perf_counter() - started}
        print(json.dumps(result, allow_nan=False))
    else:
        _show(found, files)


def _list(as_json: bool) -> None:
    from multispin.sim.reproduce.families import FAMILIES

    if as_json:
        import json

        print(json.dumps({name: family.shows for name, family in FAMILIES.items()}))
        return
    for name, family in FAMILIES.items():
        print(f"{name:12s}{family.shows}")


def _show(found: Reproduction, files: list[str]) -> None:
    from rich.console import Console

    from multispin.sim.reproduce.output import stated, tables

    console = Console(highlight=False)
    for table in tables(found):
        console.print(table)
    console.print(stated(found), soft_wrap=True)
    for file in files:
        console.print(file, soft_wrap=True)
