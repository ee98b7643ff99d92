"""What each policy of `plan` would give, under what the controller believes now.

Each policy chooses lengths, and the model of the server's mode says what these would give: in
rounds with the bandwidths that the policy chose, else with those that the model shares out, as the
server would. So what is compared is one thing only, and the plan in force is judged likewise.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np

from multispin.control import POLICIES, evaluate_window
from multispin.control.problem import Lengths
from multispin.core.planning import CellView, allotments, present_goodput
from multispin.errors import MultispinError
from multispin.types import Mode

# The first takes too long for a server, the second plans with what nobody told it: the outage.
LEFT_OUT = ("exhaustive", "outage-constrained")
JUDGE = "heterogeneous"  # the policy that is planned with the model of the mode


class PlanFigures(msgspec.Struct, frozen=True):
    """``policy`` is None for the plan in force; ``harms``: a device would get less than its share
    of server-only generation; ``fits``: the uplink carries as much."""

    policy: str | None
    goodput_tokens_per_s: float
    harms: bool
    fits: bool
    lengths: list[int]


class Comparison(msgspec.Struct, frozen=True):
    """``devices``: the numbers of those with a session that drafts, one for each length."""

    devices: list[int]
    plans: list[PlanFigures]


def compare(view: CellView, mode: Mode, devices: list[int]) -> Comparison:
    """Takes milliseconds, tens of them for a hundred devices: not for the event loop."""
    order = _drafting(view, devices)
    plans = [_figures(view, mode, None, view.lengths, None, order)]
    for policy in POLICIES:
        if policy in LEFT_OUT:
            continue
        try:
            *_, best = allotments(view, mode, policy)
        except MultispinError:  # it finds none for such a cell
            continue
        given = best.goodput_tokens_per_s if mode == "rounds" else None
        plans.append(_figures(view, mode, policy, best.lengths, given, order))
    return Comparison([devices[index] for index in order], plans)


def _figures(
    view: CellView,
    mode: Mode,
    policy: str | None,
    lengths: Lengths,
    goodput: float | None,
    order: list[int],
) -> PlanFigures:
    asked = replace(view, lengths=np.asarray(lengths))
    if goodput is None:
        goodput = present_goodput(replace(asked, least_share=0.0), mode, JUDGE)
    harms = present_goodput(asked, mode, JUDGE) == 0.0
    in_order = asked.lengths[order].tolist()
    return PlanFigures(policy, round(goodput, 2), harms, _fits(asked, mode), in_order)


def _fits(view: CellView, mode: Mode) -> bool:
    """Without a barrier or a wait, windows can ask for more than there is."""
    if mode != "window":
        return True
    return evaluate_window(view.problem, view.survival, view.round_trip_s, view.lengths).fits


def _drafting(view: CellView, devices: list[int]) -> list[int]:
    """Where those with a drafter are, by the numbers of their devices."""
    drafting = np.flatnonzero(view.acceptance > 0).tolist()
    return sorted(drafting, key=lambda index: devices[index])
