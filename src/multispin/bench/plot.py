"""Goodput over devices, as a picture."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from multispin.bench.report import Run
from multispin.errors import BadInput


def check_plotting(field: str, file: str) -> None:
    """Raise BadInput, before minutes of measuring, where nothing could be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise BadInput(field, file, "needs matplotlib: pip install 'multispin[research]'")
    if not Path(file).absolute().parent.is_dir():
        raise BadInput(field, file, "there is no such folder; make it first")


def draw(runs: Sequence[Run], title: str, file: str) -> None:
    """One line for each mode, in tokens per second over the number of devices."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for mode in dict.fromkeys(run.mode for run in runs):
        mine = sorted((r for r in runs if r.mode == mode), key=lambda r: r.num_devices)
        axes.plot(
            [run.num_devices for run in mine],
            [run.served.measured.goodput_tokens_per_s for run in mine],
            marker="o",
            label=mode,
        )
    axes.set(xlabel="devices", ylabel="goodput, tokens/s", title=title, ylim=(0, None))
    axes.set_xscale("log", base=2)
    ticks = sorted({run.num_devices for run in runs})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)
