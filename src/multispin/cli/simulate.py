"""``multispin simulate``: what a cell would do, as a table or as JSON, and a log of every round."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from multispin.cli import options
from multispin.errors import BadInput
from multispin.types import Mode

if TYPE_CHECKING:
    from multispin.cell import Cell
    from multispin.sim.statistics import Statistics
    from multispin.sim.trace import Progress, Trace

NUM_SHOWN = 50


def simulate(
    cell: Annotated[
        Path,
        typer.Argument(
            metavar="CELL.toml", help="Description of the cell; or of a cluster and its fleet."
        ),
    ],
    policy: Annotated[
        str, typer.Option(help="How to plan; an unknown name lists the choices.")
    ] = "heterogeneous",
    mode: Annotated[
        str,
        typer.Option(
            help="rounds: all devices in one pass, planned for the cell as it is; stop-and-wait or "
            "window: the running server's own code, which learns what the cell is like."
        ),
    ] = "rounds",
    rounds: Annotated[int, typer.Option(help="Verification passes to simulate.")] = 1000,
    seed: Annotated[int, typer.Option(help="Same seed, same simulation.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write a log there: rounds.parquet, passes.parquet."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Simulate a cell: its goodput, how long its devices wait, what they consume."""
    checked: Mode = options.choice("--mode", mode, get_args(Mode))
    options.check_seed(seed)
    if rounds < 1:
        raise BadInput("--rounds", rounds, "must be at least 1")

    from multispin.cell import load_cell
    from multispin.cell.tables import read_tables
    from multispin.sim.log import check_can_log
    from multispin.sim.statistics import Statistics

    if "fleet" in read_tables(cell, "cell file"):
        from multispin.cli.fleet import simulate_cluster

        for field, given, default in (("--mode", mode, "rounds"), ("--out", out, None)):
            if given != default:
                raise BadInput(field, given, "goes with a CELL.toml; a fleet has its own steps")
        with _progress() as progress:
            simulate_cluster(cell, policy, seed, progress, as_json=as_json)
        return
    loaded = load_cell(cell)
    if out is not None:
        check_can_log(out)
    started = time.perf_counter()
    with _progress() as progress:
        trace = _run(loaded, checked, policy, rounds, seed, progress)
    wall_s = time.perf_counter() - started
    result = {
        "cell": str(cell),
        "policy": policy,
        "mode": mode,
        "rounds": rounds,
        "seed": seed,
        "wall_s": wall_s,
        **_result(Statistics(trace, loaded)),
    }
    if out is not None:
        _log(trace, loaded, _parameters(result), out)
    if as_json:
        import json

        print(json.dumps(result, allow_nan=False))
    else:
        _show(loaded, result)


def _run(
    cell: Cell, mode: Mode, policy: str, num_rounds: int, seed: int, progress: Progress
) -> Trace:
    if mode == "rounds":
        from multispin.sim.rounds import simulate_rounds

        return simulate_rounds(cell, policy, num_rounds, seed, progress)
    from multispin.sim.shell import simulate_core

    return simulate_core(cell, mode, policy, num_rounds, seed, progress)


def _result(measured: Statistics) -> dict[str, Any]:
    """What `simulate --json` of contract.md says of a trace, and more; None for what is not."""
    goodput = measured.goodput
    is_powered = measured.has_energy
    outage = _outage(measured)
    devices: list[dict[str, Any]] = [
        {
            "name": name,
            "goodput_tokens_per_s": float(measured.device_goodput_tokens_per_s[k]),
            "mean_draft_length": _finite(measured.mean_draft_length[k]),
            "mean_acceptance_length": _finite(measured.mean_acceptance_length[k]),
            "time_per_token_s": measured.device_time_per_token_s[k]._asdict(),
            "answer_s": measured.device_answer_s[k]._asdict(),
            "joules_per_token": _finite(measured.device_joules_per_token[k])
            if is_powered
            else None,
            "outage": outage[k] if outage else None,
        }
        for k, name in enumerate(measured.trace.names)
    ]
    return {
        "goodput_tokens_per_s": goodput.tokens_per_s,
        "goodput_stderr": goodput.stderr,
        "goodput_batches": goodput.num_batches,
        "round_s_mean": measured.round_s_mean,
        "tokens": measured.trace.num_tokens,
        "simulated_s": measured.trace.simulated_s,
        "time_per_token_s": measured.time_per_token_s._asdict(),
        "answer_s": measured.answer_s._asdict(),
        "devices_joules_per_token": measured.devices_joules_per_token if is_powered else None,
        "server_joules_per_token": measured.server_joules_per_token if is_powered else None,
        "devices": devices,
    }


def _outage(measured: Statistics) -> list[dict[str, float | None]]:
    """For each device, where the cell's objective says what an outage is."""
    wanted = measured.cell.problem.objective.outage
    if wanted is None:
        return []
    from multispin.sim.outage import inference_outage

    found = inference_outage(measured.trace, wanted)
    return [
        dict(zip(("probability", "stderr", "gaussian", "windows"), map(_finite, row), strict=True))
        for row in zip(*found, strict=True)
    ]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on standard error, for a person, and gone at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    columns = ("simulating", BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not sys.stderr.isatty()
    ) as bars:
        task = bars.add_task("simulating", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _log(trace: Trace, cell: Cell, title: str, folder: Path) -> None:
    """The files of --out."""
    from multispin.sim.log import write_log

    outage = cell.problem.objective.outage
    try:
        write_log(trace, folder)
        if outage is not None:
            from multispin.sim.outage import draw_outage

            draw_outage(trace, outage, title, str(folder / "outage.png"))
    except OSError as error:
        raise BadInput("--out", folder, f"cannot be written to: {error}") from None


def _parameters(result: dict[str, Any]) -> str:
    return (
        f"{result['cell']}, mode {result['mode']}, policy {result['policy']}, "
        f"{result['rounds']:,} rounds, seed {result['seed']}"
    )


def _show(cell: Cell, result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, emoji=False)  # names are shown as they are
    shown = result["devices"][:NUM_SHOWN]
    table = Table(title=f"simulated, policy {result['policy']}, mode {result['mode']}")
    table.add_column("device", overflow="fold")
    columns = {
        heading: column
        for heading, column in _columns(shown).items()
        if any(c != "-" for c in column)
    }
    for heading in columns:
        table.add_column(heading, justify="right", overflow="fold")
    for device, row in zip(shown, zip(*columns.values(), strict=True), strict=True):
        table.add_row(device["name"], *row)
    console.print(table)
    if len(shown) < len(result["devices"]):
        console.print(f"... and {len(result['devices']) - len(shown)} more (--json has them all)")
    for line in _summary(cell, result):
        console.print(line, soft_wrap=True)


def _columns(devices: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Heading to what stands below it; a dash for what is not known."""
    times = [device["time_per_token_s"] for device in devices]
    outages = [device["outage"] or {} for device in devices]
    return {
        "tokens/s": [f"{device['goodput_tokens_per_s']:.2f}" for device in devices],
        "draft\nlength": [_text(device["mean_draft_length"]) for device in devices],
        "acceptance\nlength": [_text(device["mean_acceptance_length"]) for device in devices],
        "ms/token\np50": [_text(time["p50"], 1e3, 0) for time in times],
        "\np95": [_text(time["p95"], 1e3, 0) for time in times],
        "J/token": [_text(device["joules_per_token"], digits=3) for device in devices],
        "outage": [_text(outage.get("probability"), digits=4) for outage in outages],
    }


def _text(value: float | None, scale: float = 1.0, digits: int = 2) -> str:
    return "-" if value is None else f"{value * scale:,.{digits}f}"


def _summary(cell: Cell, result: dict[str, Any]) -> Iterator[str]:
    problem = cell.problem
    yield (
        f"simulated: {_parameters(result)}; {problem.num_devices} devices, "
        f"{problem.bandwidth_hz / 1e6:g} MHz, {cell.csi} CSI"
    )
    stderr = _text(result["goodput_stderr"])
    yield (
        f"goodput {result['goodput_tokens_per_s']:.2f} tokens/s (standard error {stderr}, "
        f"{result['goodput_batches']} batches), round {result['round_s_mean'] * 1e3:.1f} ms; "
        f"{result['tokens']:,} tokens in {result['simulated_s']:,.1f} simulated seconds, "
        f"computed in {result['wall_s']:.1f} s"
    )
    waits, answers = result["time_per_token_s"], result["answer_s"]
    per_token = " / ".join(_text(wait, 1e3, 0) for wait in waits.values())
    per_answer = " / ".join(_text(answer) for answer in answers.values())
    yield f"time per token {per_token} ms, per answer {per_answer} s (p50 / p95 / p99)"
    if result["server_joules_per_token"] is not None:
        yield (
            f"energy per token: devices {result['devices_joules_per_token']:.3f} J, "
            f"server {result['server_joules_per_token']:.3f} J"
        )
    outage = problem.objective.outage
    if outage is not None:
        yield (
            f"outage: fewer than {outage.tokens} tokens in {outage.deadline_s:g} s; "
            f"{outage.max_probability:g} is allowed"
        )
