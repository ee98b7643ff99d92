"""A trace as files: ``rounds.parquet``, a row for each verdict, and ``passes.parquet``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from multispin.errors import BadInput
from multispin.sim.trace import PASS_COLUMNS, VERDICT_COLUMNS, Trace


def check_can_log(folder: Path) -> None:
    """Before a long simulation rather than after it: is there a folder, and what writes to it?"""
    if not (find_spec("polars") and find_spec("matplotlib")):
        remedy = "needs Polars and Matplotlib: pip install 'multispin[research]'"
        raise BadInput("--out", folder, remedy)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput("--out", folder, f"cannot be made: {error.strerror}") from None


def write_log(trace: Trace, folder: Path) -> None:
    """Into a folder that is there. Columns are named as in ``Trace``; ``device`` is the name."""
    import polars as pl  # noqa: PLC0415 - optional

    verdicts = pl.DataFrame({name: getattr(trace, name) for name in VERDICT_COLUMNS})
    verdicts = verdicts.with_columns(device=pl.Series(trace.names).gather(trace.device))
    verdicts.write_parquet(folder / "rounds.parquet")
    passes = pl.DataFrame({name: getattr(trace, name) for name in PASS_COLUMNS})
    passes.write_parquet(folder / "passes.parquet")
