"""The table of a benchmark, and its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from multispin.bench.run import Served

if TYPE_CHECKING:
    from rich.table import Table

BASE = "server-only"
CAPTION = (
    "tokens/s: of all devices; writing: while nobody waited for a first token; ratio: to "
    "server-only; first: time to first token, median; between: inter-token latency, median, 95th, "
    "99th percentile; accepted: tokens per verification; busy: the server's time in the model; "
    "differed: judgements other than the record's; *: not replayed"
)


@dataclass(frozen=True)
class Run:
    """One mode with so many devices."""

    mode: str
    num_devices: int
    kind: str  # 'replayed', 'cost model', or 'measured': nothing was replayed
    served: Served


def report(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One object for each run; ratios are to server-only generation with as many devices."""
    return [_object(run, _base(runs, run)) for run in runs]


def _object(run: Run, base: Run | None) -> dict[str, Any]:
    served = run.served
    return {
        "mode": run.mode,
        "num_devices": run.num_devices,
        "kind": run.kind,
        **msgspec.to_builtins(served.measured),
        "server_busy": served.server_busy,
        "num_batches": served.num_batches,
        "num_rows": served.num_rows,
        "num_replay_differences": served.num_replay_differences,
        "goodput_ratio": _ratio(run, base, "goodput_tokens_per_s"),
        "writing_goodput_ratio": _ratio(run, base, "writing_goodput_tokens_per_s"),
    }


def _base(runs: Sequence[Run], run: Run) -> Run | None:
    return next((r for r in runs if (r.mode, r.num_devices) == (BASE, run.num_devices)), None)


def _ratio(run: Run, base: Run | None, field: str) -> float | None:
    ours = getattr(run.served.measured, field)
    theirs = getattr(base.served.measured, field) if base else None
    return ours / theirs if ours is not None and theirs else None


def table(runs: Sequence[Run], title: str) -> Table:
    from rich.table import Table  # noqa: PLC0415

    shown = Table(title=title, caption=CAPTION)
    for heading in (
        *("mode", "tokens/s", "ratio", "writing", "ratio", "first, s", "between, ms"),
        *("accepted", "up, B/token", "busy", "differed"),
    ):
        shown.add_column(heading, justify="left" if heading == "mode" else "right")
    for run, row in zip(runs, report(runs), strict=True):
        between = row["inter_token_s"]
        shown.add_row(
            f"{run.mode} *" if run.kind == "measured" else run.mode,
            _number(row["goodput_tokens_per_s"], 1),
            _number(row["goodput_ratio"], 2),
            _number(row["writing_goodput_tokens_per_s"], 1),
            _number(row["writing_goodput_ratio"], 2),
            _number(row["time_to_first_token_s"]["p50"], 2),
            " ".join(_number(between[p], 0, 1e3) for p in ("p50", "p95", "p99")),
            _number(row["mean_acceptance_length"], 2),
            _number(row["uplink_bytes_per_token"], 1),
            _number(row["server_busy"], 0, 1e2, "%"),
            _number(row["num_replay_differences"], 0),
        )
    return shown


def _number(value: float | None, digits: int, scale: float = 1.0, unit: str = "") -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}{unit}"
