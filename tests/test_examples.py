"""The cells in examples/ are executed, and docs/cell.md is held to what is read."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

from multispin.cell import load_cell
from multispin.cell.sections import (
    AcceptanceModel,
    CellSection,
    ChannelSection,
    CurveSection,
    DeviceSection,
    EnergySection,
    ObjectiveSection,
    Section,
    ServerEnergySection,
    ServerSection,
)
from multispin.control import solve
from multispin.radio.fading import FadingChannel
from multispin.wire.payload import payload

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.toml"))
SECTIONS: dict[str, type[Section]] = {
    "[cell]": CellSection,
    "[server]": ServerSection,
    "[server.curve]": CurveSection,
    "[server.energy]": ServerEnergySection,
    "[objective]": ObjectiveSection,
    "[[device]]": DeviceSection,
    "[device.energy]": EnergySection,
    "[device.acceptance_model]": AcceptanceModel,
    "[device.channel]": ChannelSection,
}


def test_all_examples_are_here():
    assert [path.stem for path in EXAMPLES] == ["factory", "kiosks", "paper"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_cooperation_pays_in_every_example(path):
    """Else it would not be one; and what is planned can be sent."""
    cell = load_cell(path)
    plan, alone = (solve(cell.problem, policy) for policy in ("heterogeneous", "server-only"))
    assert plan.goodput_tokens_per_s > 1.3 * alone.goodput_tokens_per_s
    assert plan.bandwidths_hz.sum() <= cell.problem.bandwidth_hz * (1 + 1e-9)
    drawn = cell.drawn(np.random.default_rng(1))
    channel = FadingChannel(drawn.radio, np.random.default_rng(2))
    bits = cell.problem.draft_bits(plan.lengths)
    done = channel.transmit(plan.draft_s, bits, plan.bandwidths_hz)
    assert (done >= plan.draft_s).all() and np.isfinite(done).all()


def test_the_papers_cell_is_the_papers():
    cell = load_cell(ROOT / "examples" / "paper.toml")
    problem = cell.problem
    assert problem.num_devices == 20 and problem.bandwidth_hz == 10e6
    assert (problem.bits_per_token == 31_744).all() and not problem.bits_per_draft.any()
    speed = problem.draft_s_per_token
    assert speed.mean() == pytest.approx(0.020, rel=1e-3)
    assert speed.min() >= 0.017 and speed.max() <= 0.023
    gain = np.expm1(cell.radio.efficiency * np.log(2)) / 100
    assert np.sort(gain) == pytest.approx(0.2 + 0.3 * (np.arange(20) + 0.5) / 20, abs=1e-3)
    assert solve(problem).goodput_tokens_per_s == pytest.approx(145, rel=0.1)  # the paper's figure


def test_the_papers_payload_would_not_fit_the_kiosks():
    """What the file's first lines say."""
    cell = load_cell(ROOT / "examples" / "kiosks.toml")
    rate = cell.problem.uplink.rate(np.full(8, cell.problem.bandwidth_hz / 8))
    assert (payload("top-1024", 248_320).bits_per_token / rate > 1.0).all()
    assert (payload("coupled", 248_320).bits_per_token / rate < 0.01).all()


def documented() -> dict[str, dict[str, str]]:
    """Heading -> key -> default, from the tables of docs/cell.md."""
    tables: dict[str, dict[str, str]] = {}
    heading = ""
    for line in (ROOT / "docs" / "cell.md").read_text().splitlines():
        if found := re.match(r"#+ `(.*)`$", line):
            heading = found[1]
        elif line.startswith("#"):
            heading = ""
        elif heading and (row := re.match(r"\| `(\w+)` \|[^|]*\| ?([^|]*?) ?\|", line)):
            tables.setdefault(heading, {})[row[1]] = row[2].strip("`")
    return tables


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_is_documented_with_its_default(heading):
    fields = msgspec.structs.fields(SECTIONS[heading])
    rows = documented()[heading]
    assert list(rows) and set(rows) == {field.name for field in fields}
    for field in fields:
        if field.required:
            assert rows[field.name] == "required"
        elif isinstance(field.default, str | int | float):
            assert rows[field.name].strip('"') == str(field.default)
        else:
            assert rows[field.name] in ("", "none", "i.i.d.", "the model's")
