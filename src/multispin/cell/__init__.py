"""CELL.toml, the description of one cell (docs/cell.md), as a ``Cell``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from multispin.cell.build import build
from multispin.cell.cell import Cell, Energy
from multispin.cell.reader import Reader
from multispin.cell.sections import AcceptanceModel, CellFile
from multispin.cell.tables import parse_tables, read_tables
from multispin.control.policies import solve as solve_problem
from multispin.control.problem import Plan
from multispin.errors import BadInput

__all__ = ["AcceptanceModel", "Cell", "Energy", "load_cell", "parse_cell", "solve"]


def solve(cell: Cell | str | os.PathLike[str], policy: str = "heterogeneous") -> Plan:
    """How far each device of a cell drafts, and which bandwidth it gets: `multispin plan`.

    ``cell`` is the path of a CELL.toml, its text (several lines), or what these were read as; the
    plan's arrays are in the order of its devices. Raises BadInput for a mistake in the cell, and
    for a policy that is unknown or finds no plan.
    """
    if isinstance(cell, str) and "\n" in cell:
        cell = parse_cell(cell)
    elif not isinstance(cell, Cell):
        cell = load_cell(Path(cell))
    return solve_problem(cell.problem, policy)


def load_cell(path: Path) -> Cell:
    """Read and check a CELL.toml. Raises BadInput naming file, field, value and remedy."""
    return _cell(read_tables(path, "cell file"), str(path))


def parse_cell(text: str, source: str = "CELL.toml") -> Cell:
    """The cell that ``text`` (TOML) describes; ``source`` is its path, or what errors call it."""
    return _cell(parse_tables(text, source), source)


def _cell(tables: dict[str, Any], source: str) -> Cell:
    file = Reader(source).read(tables, CellFile)
    try:
        return build(file, Path(source).parent)
    except BadInput as error:  # what only the whole cell can know
        raise BadInput(f"{source}: {error.field}", error.value, error.remedy) from None
