"""Which target serves a session that names one, or that states budgets.

Every target makes an offer: what a token costs the session on the replica that it would get. With n
sessions there, this one included, a pass takes

    P = fixed + n (per_device + per_token)        s per token = P
    joules per token = watts P / n                cost per token = (cost_per_hour / 3600) P / n

which is what the server alone needs, for a token of each session a pass; drafts make it less.

Of the offers that meet every budget, and bear the name if one is given, the best one is that of the
highest quality; among equals the fastest, then the cheapest, then the first. A session that asks
for nothing gets the first target. Budgets that nobody meets are refused with what would be met.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from multispin.control.estimate import VerificationFit
from multispin.errors import BadInput

_UNITS = {
    "max_s_per_token": "s per token",
    "max_joules_per_token": "J per token",
    "max_cost_per_token": "cost per token",
    "min_quality": "quality",
}


class InfeasibleBudgets(BadInput):
    """No target meets them; the message says what would be met."""

    default_code = "infeasible"


class UnknownTarget(BadInput):
    """No target of that name is served."""

    default_code = "unknown_target"


@dataclass(frozen=True)
class TargetProfile:
    """What is known of a target beforehand; ``quality`` is a class, the higher the better."""

    name: str
    quality: int
    watts: float  # of a replica at work
    cost_per_hour: float  # of a replica, in whatever currency


@dataclass(frozen=True)
class Offer:
    target: str
    quality: int
    s_per_token: float
    joules_per_token: float
    cost_per_token: float


@dataclass(frozen=True)
class Budgets:
    """What a session asks of its target: a name, or budgets; "" and 0 ask for nothing."""

    target: str = ""
    max_s_per_token: float = 0.0
    max_joules_per_token: float = 0.0
    max_cost_per_token: float = 0.0
    min_quality: int = 0

    @property
    def stated(self) -> dict[str, float]:
        """The budgets that ask for something, by name."""
        budgets = {field: float(getattr(self, field)) for field in _UNITS}
        return {field: limit for field, limit in budgets.items() if 0 < limit < math.inf}


def offer_of(profile: TargetProfile, fit: VerificationFit, num_sessions: int) -> Offer:
    """What a further session would get on a replica that has ``num_sessions``."""
    num = num_sessions + 1
    pass_s = float(fit.seconds(num, num))
    share_s = pass_s / num
    cost_per_s = profile.cost_per_hour / 3600
    joules, cost = profile.watts * share_s, cost_per_s * share_s
    return Offer(profile.name, profile.quality, pass_s, joules, cost)


def choose(offers: Sequence[Offer], budgets: Budgets) -> Offer:
    """The best of the ``offers``: one for each target that can be had, in the order of preference.

    Raises UnknownTarget where none bears the name, InfeasibleBudgets where none meets the budgets.
    """
    named = [offer for offer in offers if budgets.target in ("", offer.target)]
    if not named:
        known = ", ".join(offer.target for offer in offers) or "none"
        raise UnknownTarget("target", budgets.target, f"choose one of those served: {known}")
    stated = budgets.stated
    if not stated:
        return named[0]
    feasible = [offer for offer in named if _excess(offer, stated) <= 0]
    if not feasible:
        raise _refusal(named, stated)
    return min(feasible, key=lambda o: (-o.quality, o.s_per_token, o.cost_per_token))


def _excess(offer: Offer, stated: dict[str, float]) -> float:
    """By which part the worst of the budgets is missed; 0 or less: all are met."""
    return max(_missed(offer, field, limit) for field, limit in stated.items())


def _missed(offer: Offer, field: str, limit: float) -> float:
    value = _value(offer, field)
    return (limit - value if field == "min_quality" else value - limit) / limit


def _value(offer: Offer, field: str) -> float:
    return float(getattr(offer, field.partition("_")[2]))


def _refusal(offers: Sequence[Offer], stated: dict[str, float]) -> InfeasibleBudgets:
    """For each budget that nobody meets, the best there is; else, who misses them by least."""
    unmet = []
    for field, limit in stated.items():
        best = min(offers, key=lambda offer: _missed(offer, field, limit))
        if _missed(best, field, limit) > 0:
            unmet.append((field, limit, f"the best there is: {_told(best, [field])}"))
    if not unmet:
        closest = min(offers, key=lambda offer: _excess(offer, stated))
        asked = ", ".join(f"{field} = {limit:.6g}" for field, limit in stated.items())
        remedy = f"each is met, but not all by one target; the closest: {_told(closest, stated)}"
        return InfeasibleBudgets("budgets", asked, remedy)
    (field, limit, remedy), *more = unmet
    remedy += "".join(f"; {other} = {value:.6g}: {best}" for other, value, best in more)
    return InfeasibleBudgets(field, f"{limit:.6g}", remedy)


def _told(offer: Offer, fields: Sequence[str] | dict[str, float]) -> str:
    figures = ", ".join(f"{_value(offer, field):.6g} {_UNITS[field]}" for field in fields)
    return f"{figures} ({offer.target})"
