"""A reproduction as files and on the screen: PNG, SVG, CSV, tables."""

from __future__ import annotations

import csv
import importlib.util
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multispin.errors import BadInput
from multispin.sim.reproduce.result import Claim, Curve, Figure, Panel, Reproduction

if TYPE_CHECKING:
    from rich.table import Table

# Colours of Okabe and Ito, which colour-blind readers tell apart, from dark to light; markers and
# dashes tell them apart in grey. (colour, marker, dash)
STYLES: tuple[tuple[str, str, Any], ...] = (
    ("#000000", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#0072B2", "^", "-."),
    ("#009E73", "D", (0, (5, 1, 1, 1, 1, 1))),
    ("#CC79A7", "v", (0, (3, 1))),
    ("#E69F00", "P", (0, (1, 1))),
    ("#56B4E9", "X", (0, (6, 2))),
    ("#7F7F7F", "*", (0, (1, 3))),
    ("#B0A000", "<", (0, (4, 1, 1, 1))),
)


def check_output(folder: Path) -> None:
    """Raise BadInput, before minutes of computing, where nothing could be written."""
    if importlib.util.find_spec("matplotlib") is None:
        raise BadInput("--out", folder, "needs matplotlib: pip install 'multispin[research]'")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput("--out", folder, f"cannot be made a folder: {error.strerror}") from None


def write(found: Reproduction, folder: Path) -> list[Path]:
    """NAME.csv, and a PNG and an SVG for each figure."""
    files = [folder / f"{found.name}.csv"]
    with files[0].open("w", encoding="utf-8", newline="") as file:
        rows = found.rows()
        table = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    for figure in found.figures:
        pictures = [folder / f"{found.name}-{figure.name}.{end}" for end in ("png", "svg")]
        _draw(figure, stated(found), pictures)
        files += pictures
    return files


def stated(found: Reproduction) -> str:
    """Seed and parameters in one line."""
    parts = [f"{name} {value}" for name, value in found.parameters.items()]
    head = f"seed {found.seed}, {found.draws} draws; unless on the axis: "
    return head + "; ".join(parts)


# --- pictures ----------------------------------------------------------------------------------


def _draw(figure: Figure, statement: str, files: list[Path]) -> None:
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure as Canvas  # noqa: PLC0415

    num_rows = (len(figure.panels) + 1) // 2
    num_columns = min(len(figure.panels), 2)
    canvas = Canvas(figsize=(2.2 + 4.0 * num_columns, 0.9 + 3.3 * num_rows), layout="constrained")
    if figure.title:
        canvas.suptitle(figure.title)
    styles = _styles(figure)
    drawn: dict[str, Any] = {}
    for index, panel in enumerate(figure.panels):
        axes = canvas.add_subplot(num_rows, num_columns, index + 1)
        drawn |= _draw_panel(axes, panel, styles)
        if index % num_columns == 0:
            axes.set_ylabel("goodput, tokens/s")
    canvas.legend(
        drawn.values(),
        drawn.keys(),
        loc="outside right upper",
        title="planned: lines\nsimulated: open markers\nwith their standard error",
        alignment="left",
        frameon=False,
        fontsize=8,
        title_fontsize=8,
    )
    canvas.supxlabel(
        "\n".join(textwrap.wrap(statement, 42 + 58 * num_columns)),
        fontsize=6,
        color="#555555",
        ha="left",
        x=0.01,
    )
    with mpl.rc_context({"svg.hashsalt": "multispin"}):  # the same bytes each time
        for file in files:
            stamp = {"Date": None} if file.suffix == ".svg" else {}
            canvas.savefig(file, dpi=150, metadata=stamp)


def _styles(figure: Figure) -> dict[str, tuple[str, str, Any]]:
    """A style for each label, in the order in which they come."""
    labels = dict.fromkeys(c.label for panel in figure.panels for c in panel.curves)
    assert len(labels) <= len(STYLES), labels
    return dict(zip(labels, STYLES, strict=False))


def _draw_panel(axes: Any, panel: Panel, styles: dict[str, tuple[str, str, Any]]) -> dict[str, Any]:
    """Lines with small markers are planned; open markers with their error are simulated."""
    drawn: dict[str, Any] = {}
    for curve in panel.curves:
        colour, marker, dash = styles[curve.label]
        if curve.kind == "planned":
            (line,) = axes.plot(
                curve.x, curve.mean, color=colour, marker=marker, linestyle=dash, markersize=4
            )
            drawn[curve.label] = line
        else:
            drawn[f"{curve.label}, simulated"] = axes.errorbar(
                curve.x,
                curve.mean,
                yerr=curve.stderr,
                color=colour,
                marker=marker,
                linestyle="none",
                markersize=9,
                markerfacecolor="none",
                capsize=3,
            )
    axes.set(xlabel=panel.x_label, title=panel.title)
    if panel.is_log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(_power_of_ten)
    if panel.is_log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_power_of_ten)
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    return drawn


def _power_of_ten(value: float, _: int) -> str:
    for name, unit in (("M", 1e6), ("k", 1e3)):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


# --- tables ------------------------------------------------------------------------------------


def tables(found: Reproduction) -> Iterator[Table]:
    """One for each panel, and the claims."""
    for figure in found.figures:
        for panel in figure.panels:
            yield _panel_table(f"{figure.name}, {panel.title}", panel)
    if found.claims:
        yield _claims_table(found.claims)


def _panel_table(title: str, panel: Panel) -> Table:
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    xs = sorted({x for curve in panel.curves for x in curve.x})
    table = Table(title=f"{title}: tokens/s", box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column(panel.x_label, min_width=22, overflow="fold")
    for x in xs:
        table.add_column(f"{x:,g}", justify="right", no_wrap=True)
    for curve in panel.curves:
        name = curve.label if curve.kind == "planned" else f"{curve.label}, simulated"
        table.add_row(name, *(_number(curve, x) for x in xs))
    return table


def _number(curve: Curve, x: float) -> str:
    return f"{curve.at(x):.1f}" if x in curve.x else ""


def _claims_table(claims: tuple[Claim, ...]) -> Table:
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    columns = {"": [claim.claim for claim in claims], "here": [claim.here for claim in claims]}
    if any(claim.paper for claim in claims):
        columns["in the paper"] = [claim.paper for claim in claims]
    table = Table(box=box.SIMPLE)
    for heading in columns:
        table.add_column(heading)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table
