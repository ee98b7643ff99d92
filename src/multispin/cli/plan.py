"""``multispin plan``: draft lengths and bandwidths for a cell, as a table or as JSON."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer


def plan(
    cell: Annotated[Path, typer.Argument(metavar="CELL.toml", help="description of the cell")],
    policy: Annotated[
        str, typer.Option(help="how to decide; an unknown name lists the choices")
    ] = "heterogeneous",
    as_json: Annotated[
        bool, typer.Option("--json", help="one JSON object on standard output")
    ] = False,
    compare: Annotated[bool, typer.Option("--compare", help="every policy side by side")] = False,
) -> None:
    """Decide how far each device of a cell drafts and which bandwidth it gets."""
    # NumPy takes longer to import than `--help` may take
    from multispin.cell import load_cell

    loaded = load_cell(cell)
    result = _solve(loaded, policy)
    if compare:
        result["comparison"] = _compare(loaded, policy, result)
    if as_json:
        print(json.dumps(result, allow_nan=False))
    else:
        _show(loaded, result)


def _solve(cell: Any, policy: str) -> dict[str, Any]:
    """The ``plan --json`` object of contract.md."""
    from multispin.control import solve

    started = time.perf_counter()
    solved = solve(cell.problem, policy)
    solve_s = time.perf_counter() - started
    columns = zip(
        cell.names,
        solved.lengths.tolist(),
        solved.bandwidths_hz.tolist(),
        solved.expected_tokens.tolist(),
        solved.draft_s.tolist(),
        solved.upload_s.tolist(),
        strict=True,
    )
    keys = ("name", "draft_length", "bandwidth_hz", "expected_tokens", "draft_s", "upload_s")
    return {
        "policy": policy,
        "goodput_tokens_per_s": solved.goodput_tokens_per_s,
        "round_s": solved.round_s,
        "bandwidth_used_hz": float(solved.bandwidths_hz.sum()),
        "solve_s": solve_s,
        "devices": [dict(zip(keys, row, strict=True)) for row in columns],
    }


def _compare(cell: Any, policy: str, solved: dict[str, Any]) -> list[dict[str, Any]]:
    """Goodput of every policy, best first; one that cannot be used says why."""
    from multispin.control import POLICIES
    from multispin.errors import BadInput

    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys([*POLICIES, policy]):
        try:
            result = solved if name == policy else _solve(cell, name)
        except BadInput as error:
            rows.append({"policy": name, "goodput_tokens_per_s": None, "reason": str(error)})
            continue
        row = {key: result[key] for key in ("policy", "goodput_tokens_per_s", "round_s", "solve_s")}
        lengths = [device["draft_length"] for device in result["devices"]]
        row["mean_draft_length"] = sum(lengths) / len(lengths)
        rows.append(row)
    return sorted(rows, key=lambda row: -(row["goodput_tokens_per_s"] or 0.0))


def _show(cell: Any, result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    shown = result["devices"][:50]
    table = Table(title=f"policy {result['policy']}")
    table.add_column("device")
    for heading in ("draft length", "bandwidth kHz", "expected tokens", "draft ms", "upload ms"):
        table.add_column(heading, justify="right")
    for device in shown:
        table.add_row(
            device["name"],
            str(device["draft_length"]),
            f"{device['bandwidth_hz'] / 1e3:,.1f}",
            f"{device['expected_tokens']:.3f}",
            f"{device['draft_s'] * 1e3:.1f}",
            f"{device['upload_s'] * 1e3:.1f}",
        )
    console.print(table)
    if len(shown) < len(result["devices"]):
        console.print(f"... and {len(result['devices']) - len(shown)} more (--json has them all)")
    console.print(
        f"goodput {result['goodput_tokens_per_s']:.2f} tokens/s, round "
        f"{result['round_s'] * 1e3:.1f} ms, bandwidth {result['bandwidth_used_hz'] / 1e6:.3f} of "
        f"{cell.problem.bandwidth_hz / 1e6:.3f} MHz, solved in {result['solve_s'] * 1e3:.1f} ms"
    )
    if "comparison" in result:
        _show_comparison(console, result["comparison"])


def _show_comparison(console: Any, rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    usable = {row["policy"]: row["goodput_tokens_per_s"] for row in rows if "reason" not in row}
    server = usable.get("server-only")
    table = Table(title="all policies")
    table.add_column("policy", no_wrap=True)
    for heading in ("tokens/s", "over server-only", "mean draft length", "round ms"):
        table.add_column(heading, justify="right")
    for row in rows:
        if "reason" in row:
            continue
        gain = f"{100 * (row['goodput_tokens_per_s'] / server - 1):+.1f} %" if server else "-"
        table.add_row(
            row["policy"],
            f"{row['goodput_tokens_per_s']:.2f}",
            gain,
            f"{row['mean_draft_length']:.2f}",
            f"{row['round_s'] * 1e3:.1f}",
        )
    console.print(table)
    for row in rows:
        if "reason" in row:
            console.print(f"{row['policy']}: not shown: {row['reason']}", highlight=False)
