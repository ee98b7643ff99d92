"""Radio cells of one server: each keeps to its own uplink, and all share the server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from multispin.control.uplink import SPAN
from multispin.core.cells import MAX_BUDGETS, MAX_CELLS, MAX_NAME, Cells
from multispin.core.controller import PRICE_S, ControlSettings, SessionKey
from multispin.core.cost import Costs
from multispin.core.drafter import ModelDrafter
from multispin.core.planning import allotments
from multispin.core.server_time import SAVED_S, SOLVE_SHARE
from multispin.errors import BadInput, PeerError
from multispin.lm.ngram import NgramModel
from multispin.types import Mode
from multispin.wire.payload import payload
from tests.core.virtual_time import Cell, Hardware

IN_CHARGE = ControlSettings("heterogeneous")
COSTS = Costs(fixed_s=0.03, per_row_s=0.002)
SCARCE = "heterogeneous", 8_000.0


def new_cells(
    settings: ControlSettings = IN_CHARGE,
    clock: Callable[[], float] = lambda: 0.0,
    mode: Mode = "window",
) -> Cells:
    return Cells(settings, payload("coupled", 256), 32, clock, mode)


def hardware(*cells: str, kinds: int = 3) -> list[Hardware]:
    """Of each cell a device that drafts well, one that drafts slowly, and one that has to guess."""
    known = ((4, 0.004, 0.02), (3, 0.02, 0.01), (2, 0.01, 0.05))[:kinds]
    drafters = [
        ModelDrafter(NgramModel.from_text(order=order, num_sequences=1, context_length=4096))
        for order, _, _ in known
    ]
    return [
        Hardware(drafter, draft_s, 32, trip_s, cell=cell)
        for cell in cells
        for drafter, (_, draft_s, trip_s) in zip(drafters, known, strict=True)
    ]


def used(cell: Cell, devices: list[Hardware], name: str) -> int:
    """Bits per second that the cell's devices are granted for drafts."""
    sessions = [seat.session for seat in cell.seats]
    pairs = zip(devices, sessions, strict=True)
    return sum(s.upload_bits_per_s for d, s in pairs if d.cell == name and s and s.grant)


@pytest.mark.parametrize("mode", ["stop-and-wait", "window"])
@pytest.mark.parametrize("policy", ["heterogeneous", "fixed"])
def test_each_cell_shares_out_its_own_uplink_and_no_more(mode: Mode, policy: str) -> None:
    devices = hardware("east", "west")
    control = ControlSettings(policy, 12_000.0)
    cell = Cell(devices, COSTS, mode=mode, control=control)
    cell.core.controller.set_budgets({"west": 6_000.0})
    cell.goodput(10)
    num_full = {"east": 0, "west": 0}
    for _ in range(20):
        cell.goodput(0.5)
        for name, budget in (("east", 12_000), ("west", 6_000)):
            assert used(cell, devices, name) <= budget * 1.01
            num_full[name] += used(cell, devices, name) > 0.9 * budget
    assert policy == "fixed" or min(num_full.values()) > 10, num_full


def goodputs(names: tuple[str, ...], mode: Mode, kinds: int = 3) -> np.ndarray:
    """Tokens per second of each device, once the controller knows them."""
    cell = Cell(hardware(*names, kinds=kinds), COSTS, mode=mode, control=IN_CHARGE)
    cell.goodput(15)
    before = np.array(cell.committed)
    cell.goodput(10)
    return (np.array(cell.committed) - before) / 10


@pytest.mark.parametrize("mode", ["stop-and-wait", "window"])
def test_cells_do_not_disturb_each_other(mode: Mode) -> None:
    """Where no uplink is scarce, devices write as if they were of one cell, or nearly: those that
    gain nothing lose no more than they would there, and the others gain as much."""
    apart, together = goodputs(("a", "b", "c", "d"), mode), goodputs(("",) * 4, mode)
    assert apart.sum() >= 0.95 * together.sum()
    assert apart.min() >= 0.95 * together.min()


@pytest.mark.parametrize("mode", ["stop-and-wait", "window"])
def test_cells_do_not_keep_each_other_from_drafting(mode: Mode) -> None:
    """Where everybody gains by it: none is to wait for the others to gain first."""
    apart, together = goodputs(("a", "b", "c", "d"), mode, 1), goodputs(("",) * 4, mode, 1)
    assert together.min() > 2 / (COSTS.fixed_s + 4 * COSTS.per_row_s)  # twice the server alone
    assert apart.sum() >= 0.9 * together.sum()


def test_the_name_of_a_cell_changes_nothing() -> None:
    grants = []
    for name in ("", "east"):
        cell = Cell(hardware(name), COSTS, mode="window", control=ControlSettings(*SCARCE))
        cell.goodput(8)
        grants.append(cell.grants)
    assert grants[0] == grants[1]


def test_a_smaller_budget_holds_at_once_and_a_larger_one_is_used_soon() -> None:
    devices = hardware("east", "west")
    cell = Cell(devices, COSTS, mode="window", control=ControlSettings(*SCARCE))
    controller = cell.core.controller
    cell.goodput(10)
    before = {name: used(cell, devices, name) for name in ("east", "west")}
    assert min(before.values()) > 0.8 * SCARCE[1]
    controller.set_budgets({"east": SCARCE[1] / 4})
    keys = [key for key in controller._sessions if devices[key.link].cell == "east"]
    granted = [controller.grant(key) for key in keys]
    assert sum(g.upload_bits_per_s for g in granted if g.draft_length) <= SCARCE[1] / 4
    for _ in range(8):
        cell.goodput(0.5)
        assert used(cell, devices, "east") <= SCARCE[1] / 4
    assert used(cell, devices, "west") > 0.8 * SCARCE[1]
    controller.set_budgets({"east": 2 * SCARCE[1]})
    cell.goodput(2)
    assert used(cell, devices, "east") > 1.2 * SCARCE[1]


def test_a_plan_in_the_making_for_another_budget_is_dropped() -> None:
    clock = Ticks(0.001)
    cells = new_cells(ControlSettings("heterogeneous", 1e6), clock)
    keys = [SessionKey(link, 0) for link in range(8)]
    for key in keys:
        cells.connect(key.link, 1.0)
        cells.join(key, 32)
        for _ in range(50):
            cells.drafted(key, 8, 0.02, 0.05)
            cells.compared(key, 8, 8)
    cells.plan()
    assert cells._planner is not None  # it is not done
    cells.set_budgets({"": 5e5})
    clock.tick_s = 0.0
    for _ in range(3):
        cells.plan()
        grants = [cells.grant(key) for key in keys]
        assert sum(grant.upload_bits_per_s for grant in grants if grant.draft_length) <= 5e5
    assert max(grant.draft_length for grant in grants) > 4  # than which no probe is longer


def test_without_a_budget_nobody_drafts() -> None:
    devices = hardware("east", "west")
    cell = Cell(devices, COSTS, mode="stop-and-wait", control=IN_CHARGE)
    cell.core.controller.set_budgets({"east": 0.0})
    cell.goodput(5)
    assert all(set(grants) == {0} for grants in cell.grants[:3])
    assert max(cell.grants[3]) > 0
    assert min(cell.committed) > 0
    cell.core.controller.set_budgets({"east": 1e6})
    cell.goodput(5)
    assert max(cell.grants[0]) > 0


def test_the_price_is_what_more_of_the_uplink_would_bring() -> None:
    prices = []
    for budget in (3_000.0, 12_000.0, 1e8):
        cell = Cell(hardware("east", "east", "east", kinds=1), COSTS, control=IN_CHARGE)
        cell.core.controller.set_budgets({"east": budget})
        cell.goodput(3 * PRICE_S)
        [load] = cell.core.controller.loads()
        prices.append(load.price)
        east = cell.core.controller._cells["east"]
        for _ in east._find_price():  # now
            pass
        view = east.beliefs()[1]
        plans = [
            list(allotments(replace(view, budget=factor * budget), "rounds", "heterogeneous"))[-1]
            for factor in (1 / SPAN, SPAN)
        ]
        less, more = (plan.goodput_tokens_per_s for plan in plans)
        assert east.price == pytest.approx((more - less) / (1.5 * budget), abs=1e-6)
    assert min(prices[:2]) > 0 == prices[2]


def test_without_budgets_from_outside_nothing_is_priced() -> None:
    cell = Cell(hardware("east"), COSTS, mode="window", control=ControlSettings(*SCARCE))
    cell.goodput(2 * PRICE_S)
    [load] = cell.core.controller.loads()
    assert (load.num_devices, load.budget, load.price) == (3, SCARCE[1], 0.0)


class Ticks:
    """A clock that goes on each time somebody looks at it: planning takes time."""

    def __init__(self, tick_s: float) -> None:
        self.tick_s = tick_s
        self.now = 0.0

    def __call__(self) -> float:
        self.now += self.tick_s
        return self.now


@pytest.mark.parametrize("num_cells", [1, 8])
def test_planning_time_is_shared_and_each_cell_has_its_turn(num_cells: int) -> None:
    clock = Ticks(0.0005)
    cells = new_cells(ControlSettings(*SCARCE), clock)
    cells.set_budgets({str(number): 1e4 for number in range(num_cells)})
    for link in range(16):
        cells.connect(link, 1.0, cell=str(link % num_cells))
        cells.join(SessionKey(link, 0), 32)
    spent: list[float] = []
    spend = cells._server.spend
    cells._server.spend = lambda seconds: (spent.append(seconds), spend(seconds))[1]  # type: ignore[method-assign]
    planned_at: dict[str, set[float]] = {str(number): set() for number in range(num_cells)}
    while clock.now < 120:
        clock.now += 0.05
        cells.plan()
        for name, seen in planned_at.items():
            seen.add(cells._cells[name]._planned_at)
    assert sum(spent) <= SAVED_S + SOLVE_SHARE * clock.now + max(spent)
    assert max(spent) < 0.01  # a slice
    counts = [len(seen) for seen in planned_at.values()]
    assert min(counts) >= 3
    assert max(counts) <= 2 * min(counts)


def test_devices_may_name_what_they_like() -> None:
    cells = new_cells()
    for number in range(MAX_CELLS - 1):  # the unnamed one is there
        cells.connect(number, 1.0, cell=str(number))
    with pytest.raises(PeerError, match="cell = more") as error:
        cells.connect("one", 1.0, cell="more")
    assert error.value.code == "overloaded"
    assert error.value.retry_after_s > 0
    cells.set_budgets({"known": 1e6})
    cells.connect("known", 1.0, cell="known")
    cells.drop("known")
    cells.connect("another", 1.0, cell="7")
    with pytest.raises(BadInput, match="cell"):
        cells.connect("long", 1.0, cell="x" * (MAX_NAME + 1))
    cells.drop(7)
    assert len(cells.loads()) == MAX_CELLS - 1  # the other one is of it
    cells.drop("another")
    cells.connect("one", 1.0, cell="more")
    for link in [*range(MAX_CELLS), "one"]:
        cells.drop(link)
    assert cells.loads() == []
    assert not (cells._links or cells._sessions)


def test_a_cell_stays_until_its_last_session_has_ended() -> None:
    """The link may go while a pass judges the session."""
    cells = new_cells()
    key = SessionKey("link", 0)
    cells.connect("link", 1.0, cell="east")
    cells.join(key, 32)
    cells.drop("link")
    cells.compared(key, 3, 2)
    [load] = cells.loads()
    assert load.cell == "east"
    cells.leave(key)
    assert cells.loads() == []


def test_budgets_stand_and_are_not_too_many() -> None:
    cells = new_cells()
    cells.set_budgets({"east": 5.0, "west": 6.0})
    cells.set_budgets({"west": 7.0})
    for name, budget in (("east", 5.0), ("west", 7.0)):
        cells.connect(name, 1.0, cell=name)
        assert next(load for load in cells.loads() if load.cell == name).budget == budget
        cells.drop(name)
    for begin in range(0, 2 * MAX_BUDGETS, 1000):
        cells.set_budgets({str(begin + number): 1.0 for number in range(1000)})
    assert len(cells.budgets) == MAX_BUDGETS
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(BadInput, match="budgets: a"):
            cells.set_budgets({"b": 1.0, "a": wrong})
    assert "b" not in cells.budgets


def test_whose_next_text_is_expected_is_planned_for_where_nobody_else_is() -> None:
    """The passes go on with other cells."""
    now = [0.0]
    cells = new_cells(ControlSettings(*SCARCE), lambda: now[0])
    for link, name in enumerate(("east", "west")):
        cells.connect(link, 1.0, cell=name)
        cells.join(SessionKey(link, 0), 32)
    for _ in range(4):
        cells.plan()
    cells.leave(SessionKey(0, 0))
    for _ in range(8):
        now[0] += 0.3
        cells.plan()
    cells.join(SessionKey(0, 1), 32)
    assert cells.grant(SessionKey(0, 1)).upload_bits_per_s <= SCARCE[1]
