"""`multispin bench`: a server and replayed devices in every mode, beside what others would run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multispin.cli import options
from multispin.errors import BadInput

if TYPE_CHECKING:
    from multispin.bench.devices import DeviceSpeed
    from multispin.bench.report import Run
    from multispin.bench.run import Progress, Served
    from multispin.core.cost import Costs
    from multispin.lm.record import Record

COLOCATED, PEERS = "colocated", ("llama.cpp", "llama.cpp drafting")
MODES = ("server-only", COLOCATED, "fixed", "rounds", "stop-and-wait", "window")
COLOCATED_LENGTH = 4
SPARE_TOKENS = 64  # of a session's context, beyond its text: drafts that go too far
MAX_DEVICES = 4096


def bench(
    record: Annotated[
        str | None,
        typer.Option(metavar="FILE.record", help="Texts to write; without it, record them first."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Model of the server: by default the record's; or cost:FILE."),
    ] = None,
    draft: Annotated[
        str | None, typer.Option(help="Drafter to record, or to run co-located; as in `record`.")
    ] = None,
    prompts: options.OptionalPrompts = None,
    human_eval: Annotated[
        int | None, typer.Option(help="Record the first so many prompts of HumanEval.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of a text to record.")] = 128,
    devices: Annotated[int, typer.Option(help="Replayed devices.")] = 4,
    draft_s_per_token: Annotated[
        str, typer.Option(help="Of a device; a list a,b,… gives each device the next of them.")
    ] = "0.010",
    round_trip_s: Annotated[str, typer.Option(help="To the server and back; or a list.")] = "0.020",
    uplink_bits_per_s: Annotated[
        str, typer.Option(help="Of each device, 0 for no limit; or a list.")
    ] = "0",
    seconds: Annotated[float, typer.Option(help="Measuring time of each run.")] = 30.0,
    warm: Annotated[
        bool,
        typer.Option(
            "--warm",
            help="Read every prompt before measuring and keep it in the server's cache: what is "
            "measured then is writing.",
        ),
    ] = False,
    modes: Annotated[str, typer.Option(help="Which to run.")] = ",".join(MODES),
    policy: Annotated[
        str | None,
        typer.Option(
            help="Of the modes rounds, stop-and-wait and window: a name, or your own as "
            "MODULE:CLASS; by default heterogeneous, and in window each device."
        ),
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(metavar="devices=1,2,…", help="Run all for each of these numbers.")
    ] = None,
    plot: Annotated[
        str, typer.Option(metavar="FILE.png", help="Goodput over devices, drawn by --sweep.")
    ] = "bench.png",
    peer: Annotated[
        bool, typer.Option("--peer", help="Also llama.cpp's own server, plain and drafting.")
    ] = False,
    drafter_cost: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Times of a co-located drafter's batches (as cost:)."),
    ] = None,
    colocated_length: Annotated[
        int, typer.Option(help="Tokens that the co-located drafter drafts at a time.")
    ] = COLOCATED_LENGTH,
    threads: options.Threads = None,
    gpu_layers: options.GpuLayers = 0,
    as_json: options.Json = False,
) -> None:
    """Measure every mode with replayed devices, beside the server alone, in one run."""
    if not (math.isfinite(seconds) and 0 < seconds <= 86400):
        raise BadInput("--seconds", seconds, "must be above 0")
    if not 1 <= colocated_length <= 32:
        raise BadInput("--colocated-length", colocated_length, "must be 1 to 32")
    counts = _counts(devices, sweep)
    chosen = [options.choice("--modes", mode, MODES) for mode in dict.fromkeys(modes.split(","))]
    speeds = _speeds(draft_s_per_token, round_trip_s, uplink_bits_per_s)

    from multispin.bench.plot import check_plotting
    from multispin.control import find_policy

    if policy is not None:
        find_policy(policy)
    if sweep is not None:
        check_plotting("--plot", plot)
    with tempfile.TemporaryDirectory(prefix="multispin-bench-") as folder:
        file = _record_file(record, target, folder)
        if not os.path.lexists(file):
            _record_first(file, target, draft, prompts, human_eval, max_tokens, threads, gpu_layers)
        bed = _test_bed(
            file, target, draft, drafter_cost, folder, threads, gpu_layers, warm, policy
        )
        bed.check(chosen, peer)
        cells = [[speeds[i % len(speeds)] for i in range(num)] for num in counts]
        try:
            runs = asyncio.run(_runs(bed, chosen, cells, seconds, colocated_length, peer))
        except asyncio.CancelledError:
            raise typer.Exit(128 + signal.SIGTERM) from None
    _tell(runs, bed, plot if sweep is not None else None, as_json)


@dataclass(frozen=True)
class TestBed:
    """What all runs have in common."""

    file: str  # of the record
    record: Record
    target: str
    draft: str
    drafter_cost: str | None
    threads: int
    gpu_layers: int
    warm: bool
    policy: str | None

    @property
    def has_costs(self) -> bool:
        return self.target.startswith("cost:")

    @property
    def context_length(self) -> int:
        longest = max(len(text.prompt_ids) + len(text.path) for text in self.record.texts) // 4
        return longest + SPARE_TOKENS

    def check(self, modes: list[str], peer: bool) -> None:
        """Raise BadInput, before minutes of measuring, for what cannot be run."""
        if COLOCATED in modes and self.has_costs and self.drafter_cost is None:
            modes.remove(COLOCATED)
            print("colocated is left out: --drafter-cost says what it costs", file=sys.stderr)
        if self.drafter_cost is not None:
            if not self.has_costs:
                raise BadInput("--drafter-cost", self.drafter_cost, "goes with --target cost:FILE")
            from multispin.bench.colocated import read_costs

            read_costs(self.drafter_cost)
        if peer and (self.has_costs or self.target == "ngram"):
            raise BadInput("--peer", self.target, "llama.cpp's server needs a GGUF model")

    def serve_arguments(self, num_devices: int) -> list[str]:
        arguments = ["--target", self.target, "--ctx-size", str(self.context_length)]
        num_kept = len(self.record.texts) if self.warm else 0
        arguments += ["--max-sessions", str(num_devices + num_kept)]
        arguments += ["--threads", str(self.threads), "--gpu-layers", str(self.gpu_layers)]
        return arguments if self.has_costs else [*arguments, "--replay", self.file]


# --- what was asked for ------------------------------------------------------------------------


def _counts(devices: int, sweep: str | None) -> list[int]:
    if sweep is None:
        if not 1 <= devices <= MAX_DEVICES:
            raise BadInput("--devices", devices, f"must be 1 to {MAX_DEVICES}")
        return [devices]
    name, _, values = sweep.partition("=")
    counts = [int(value) if value.isdecimal() else 0 for value in values.split(",")]
    if name != "devices" or not all(1 <= count <= MAX_DEVICES for count in counts):
        raise BadInput("--sweep", sweep, "must be devices=1,2,4 or the like")
    return counts


def _speeds(drafting: str, round_trips: str, uplinks: str) -> list[DeviceSpeed]:
    from multispin.bench.devices import DeviceSpeed

    columns = [
        _numbers("--draft-s-per-token", drafting),
        _numbers("--round-trip-s", round_trips),
        _numbers("--uplink-bits-per-s", uplinks),
    ]
    num = math.lcm(*(len(column) for column in columns))
    if num > MAX_DEVICES:
        raise BadInput("--draft-s-per-token", drafting, "the lists' lengths should fit each other")
    return [DeviceSpeed(*(column[i % len(column)] for column in columns)) for i in range(num)]


def _numbers(field: str, values: str) -> list[float]:
    try:
        numbers = [float(value) for value in values.split(",")]
    except ValueError:
        raise BadInput(field, values, "must be a number, or several with commas") from None
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise BadInput(field, values, "must be 0 or more")
    return numbers


def _record_file(record: str | None, target: str | None, folder: str) -> str:
    """The record to use: that of --record, that which a cost model names, or a new one."""
    if record is not None:
        return record
    if target is not None and target.startswith("cost:"):
        named = _costs(target).record
        if named is None:
            raise BadInput("--record", "(none)", f"{target} names no record either: give one")
        return os.fspath(Path(target.removeprefix("cost:")).parent / named)
    return os.fspath(Path(folder) / "bench.record")


def _costs(target: str) -> Costs:
    from multispin.bench.colocated import read_costs

    return read_costs(target.removeprefix("cost:"))


def _record_first(
    file: str,
    target: str | None,
    draft: str | None,
    prompts: str | None,
    human_eval: int | None,
    max_tokens: int,
    threads: int | None,
    gpu_layers: int,
) -> None:
    if target is None or draft is None or target.startswith("cost:"):
        raise BadInput(
            "--record",
            file,
            "is not there: write it with `multispin record`, or say what to "
            "record with --target MODEL and --draft MODEL",
        )
    from multispin.cli.record import record

    record(
        target,
        draft,
        file,
        prompts=prompts,
        human_eval=human_eval,
        max_tokens=max_tokens,
        threads=threads,
        gpu_layers=gpu_layers,
    )


def _test_bed(
    file: str,
    target: str | None,
    draft: str | None,
    drafter_cost: str | None,
    folder: str,
    threads: int | None,
    gpu_layers: int,
    warm: bool,
    policy: str | None,
) -> TestBed:
    from multispin.lm.record import read_record

    record = read_record(file, "--record")
    file = os.path.abspath(file)
    target = target or record.target
    if target.startswith("cost:"):
        target = _with_record(target, file, folder)
    num_threads = options.num_threads(threads)
    draft = draft or record.draft
    return TestBed(file, record, target, draft, drafter_cost, num_threads, gpu_layers, warm, policy)


def _with_record(target: str, file: str, folder: str) -> str:
    """The same cost model, to write the texts of our record."""
    import msgspec

    costs = {**msgspec.to_builtins(_costs(target)), "record": file}
    lines = [f"{key} = {json.dumps(value)}" for key, value in costs.items()]
    copy = Path(folder) / Path(target.removeprefix("cost:")).name
    copy.write_text("[cost]\n" + "\n".join(lines) + "\n", "utf-8")
    return f"cost:{copy}"


# --- the runs ----------------------------------------------------------------------------------


async def _runs(
    bed: TestBed,
    modes: Sequence[str],
    cells: list[list[DeviceSpeed]],
    seconds: float,
    colocated_length: int,
    peer: bool,
) -> list[Run]:
    """All modes, cell by cell. SIGTERM ends it in good order, as Ctrl-C does."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    runs: list[Run] = []
    for cell in cells:
        runs += await _run(bed, modes, cell, seconds, colocated_length, peer)
    return runs


async def _run(
    bed: TestBed,
    modes: Sequence[str],
    cell: list[DeviceSpeed],
    seconds: float,
    colocated_length: int,
    peer: bool,
) -> list[Run]:
    from multispin.bench.report import Run
    from multispin.bench.run import SETUPS, run_devices

    runs = []
    replayed = "cost model" if bed.has_costs else "replayed"
    for mode in [*modes, *(PEERS if peer else ())]:
        with _progress(f"{mode}, {len(cell)} devices", seconds) as progress:
            if mode == COLOCATED:
                served = await _colocated(bed, len(cell), seconds, colocated_length, progress)
                kind = "cost model" if bed.has_costs else "measured"
            elif mode in PEERS:
                served = await _peer(bed, mode, len(cell), seconds, progress)
                kind = "measured"
            else:
                arguments = bed.serve_arguments(len(cell))
                setup = SETUPS[mode].under(bed.policy)
                served = await run_devices(
                    setup, arguments, bed.file, cell, seconds, bed.warm, progress
                )
                kind = replayed
        runs.append(Run(mode, len(cell), kind, served))
    return runs


async def _colocated(
    bed: TestBed, num_texts: int, seconds: float, draft_length: int, progress: Progress
) -> Served:
    from multispin.bench.colocated import Colocate
    from multispin.bench.run import run_alone
    from multispin.catalog import find_model
    from multispin.cli.drafter import drafter_options
    from multispin.cli.serve import TARGETS_WITHOUT_FILE
    from multispin.net.loading import TargetOptions

    has_file = not bed.has_costs and bed.target not in TARGETS_WITHOUT_FILE
    load = TargetOptions(
        target=bed.target,
        path=os.fspath(find_model(bed.target)) if has_file else None,
        num_sequences=num_texts,
        context_length=bed.context_length,
        threads=bed.threads,
        gpu_layers=bed.gpu_layers,
        reproducible=False,
        max_rows=max(64, num_texts * (draft_length + 1)),
        replay=None if bed.has_costs else bed.file,
    )
    draft = costs = None
    if bed.has_costs:
        assert bed.drafter_cost is not None
        costs = (bed.target.removeprefix("cost:"), bed.drafter_cost)
    else:
        import msgspec

        draft = drafter_options(
            bed.draft, threads=bed.threads, gpu_layers=bed.gpu_layers, num_sequences=num_texts
        )
        draft = msgspec.structs.replace(draft, context_length=bed.context_length)
    job = Colocate(bed.file, num_texts, draft_length, seconds, load, draft, costs)
    return await run_alone(job, progress)


async def _peer(
    bed: TestBed, mode: str, num_streams: int, seconds: float, progress: Progress
) -> Served:
    from multispin.bench.peer import Stream
    from multispin.bench.run import run_alone
    from multispin.catalog import find_model

    job = Stream(
        record=bed.file,
        num_streams=num_streams,
        seconds=seconds,
        target=os.fspath(find_model(bed.target)),
        draft=os.fspath(find_model(bed.draft)) if mode != PEERS[0] else None,
        context_length=bed.context_length,
        threads=bed.threads,
        gpu_layers=bed.gpu_layers,
    )
    return await run_alone(job, progress)


# --- what people see ---------------------------------------------------------------------------


@contextlib.contextmanager
def _progress(label: str, seconds: float) -> Iterator[Progress]:
    """A bar on standard error; elsewhere than on a terminal, a line when measuring ends."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[tokens]}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=1.0, tokens="starting")

        def show(wrote: Any) -> None:
            elapsed_s = max(wrote.share * seconds, 1e-3)
            rate = f"{wrote.num_tokens / elapsed_s:.1f} tokens/s"
            bar.update(task, completed=wrote.share, tokens=rate)
            if wrote.share == 1.0 and not console.is_terminal:
                print(f"{label}: {rate}", file=sys.stderr, flush=True)

        yield show


def _tell(runs: Sequence[Run], bed: TestBed, plot: str | None, as_json: bool) -> None:
    from rich.console import Console

    from multispin.bench.plot import draw
    from multispin.bench.profile import shown_name
    from multispin.bench.report import report, table

    target = shown_name(bed.target)
    kind = "cost model" if bed.has_costs else "replayed devices"
    title = f"{target}, {kind}, texts of {bed.record.target} and {bed.record.draft}"
    console = Console(stderr=as_json, width=None if sys.stdout.isatty() else 140)
    for num in dict.fromkeys(run.num_devices for run in runs):
        mine = [run for run in runs if run.num_devices == num]
        console.print(table(mine, f"{title}; {num} devices"))
    if plot is not None:
        draw(runs, title, plot)
        print(f"wrote {plot}", file=sys.stderr)
    result = {
        "benchmark": "bench",
        "target": target,
        "record": {"target": bed.record.target, "draft": bed.record.draft},
        "threads": bed.threads,
        "runs": report(runs),
    }
    print(json.dumps(result))
