"""The choice among targets, against a search over all offers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multispin.control.choice import (
    Budgets,
    InfeasibleBudgets,
    Offer,
    TargetProfile,
    UnknownTarget,
    choose,
    offer_of,
)
from multispin.control.estimate import VerificationFit

FEW = st.sampled_from([0.01, 0.02, 0.04, 0.08])  # few values, so that there are ties
OFFERS = st.lists(st.tuples(st.integers(0, 3), FEW, FEW, FEW), min_size=1, max_size=6).map(
    lambda rows: [Offer(f"target-{i}", *row) for i, row in enumerate(rows)]
)
LIMIT = st.sampled_from([0.0, 0.0, 0.1, 0.1, 0.04, 0.03, 0.01, 0.005])
BUDGETS = st.builds(
    Budgets,
    st.sampled_from(["", "", "target-0", "target-2"]),
    LIMIT,
    LIMIT,
    LIMIT,
    st.sampled_from([0, 0, 1, 2, 4]),
)


def meets(offer: Offer, budgets: Budgets) -> bool:
    return (
        budgets.target in ("", offer.target)
        and (not budgets.max_s_per_token or offer.s_per_token <= budgets.max_s_per_token)
        and (
            not budgets.max_joules_per_token
            or offer.joules_per_token <= budgets.max_joules_per_token
        )
        and (not budgets.max_cost_per_token or offer.cost_per_token <= budgets.max_cost_per_token)
        and offer.quality >= budgets.min_quality
    )


def is_better(one: Offer, other: Offer) -> bool:
    if one.quality != other.quality:
        return one.quality > other.quality
    if one.s_per_token != other.s_per_token:
        return one.s_per_token < other.s_per_token
    return one.cost_per_token < other.cost_per_token


@settings(max_examples=500)
@given(OFFERS, BUDGETS)
def test_nobody_who_meets_the_budgets_is_better(offers, budgets):
    named = [offer for offer in offers if budgets.target in ("", offer.target)]
    feasible = [offer for offer in offers if meets(offer, budgets)]
    if not named:
        with pytest.raises(UnknownTarget):
            choose(offers, budgets)
    elif not feasible:
        with pytest.raises(InfeasibleBudgets):
            choose(offers, budgets)
    elif budgets == Budgets(budgets.target):
        assert choose(offers, budgets) is named[0]
    else:
        chosen = choose(offers, budgets)
        assert chosen in feasible
        assert not any(is_better(offer, chosen) for offer in feasible)
        equal = [offer for offer in feasible if not is_better(chosen, offer)]
        assert chosen is equal[0], "the first of those that are equal"


@settings(max_examples=500)
@given(OFFERS, BUDGETS)
def test_a_refusal_says_what_would_be_met(offers, budgets):
    """Whoever asks for what it says gets it."""
    try:
        choose(offers, budgets)
    except InfeasibleBudgets as refusal:
        assert refusal.code == "infeasible"
        said = str(refusal)
        if "the closest" in said:
            assert all(any(meets(o, one) for o in offers) for one in _each(budgets))
        else:
            assert said.count("the best there is") == sum(
                not any(meets(offer, one) for offer in offers) for one in _each(budgets)
            )
        assert any(f"({offer.target})" in said for offer in offers)
    except UnknownTarget as refusal:
        assert all(offer.target in str(refusal) for offer in offers)


def _each(budgets: Budgets) -> list[Budgets]:
    """Its budgets, one at a time."""
    return [Budgets(budgets.target, **{field: value}) for field, value in budgets.stated.items()]


LARGE = Offer("large", 3, 0.08, 4.0, 2e-5)
SMALL = Offer("small", 1, 0.02, 0.5, 1e-6)


@pytest.mark.parametrize(
    ("budgets", "says"),
    [
        (
            Budgets(max_s_per_token=0.01),
            "max_s_per_token = 0.01: the best there is: 0.02 s per token (small)",
        ),
        (
            Budgets(max_s_per_token=0.01, min_quality=4),
            "max_s_per_token = 0.01: the best there is: 0.02 s per token (small); "
            "min_quality = 4: the best there is: 3 quality (large)",
        ),
        (
            Budgets(max_s_per_token=0.05, min_quality=2),
            "budgets = max_s_per_token = 0.05, min_quality = 2: each is met, but not all by one "
            "target; the closest: 0.02 s per token, 1 quality (small)",
        ),
        (
            Budgets("large", max_joules_per_token=1.0),
            "max_joules_per_token = 1: the best there is: 4 J per token (large)",
        ),
    ],
)
def test_the_refusal_in_words(budgets, says):
    with pytest.raises(InfeasibleBudgets) as refused:
        choose([LARGE, SMALL], budgets)
    assert str(refused.value) == says


def test_more_sessions_make_tokens_slower_and_cheaper():
    fit = VerificationFit(fixed_s=0.03, per_device_s=0.001, per_token_s=0.0005)
    profile = TargetProfile("chat", 2, watts=300.0, cost_per_hour=3.6)
    alone, tenth = offer_of(profile, fit, 0), offer_of(profile, fit, 9)
    assert (alone.target, alone.quality) == ("chat", 2)
    assert alone.s_per_token == pytest.approx(0.0315)
    assert alone.joules_per_token == pytest.approx(300 * 0.0315)
    assert alone.cost_per_token == pytest.approx(0.001 * 0.0315)
    assert tenth.s_per_token == pytest.approx(0.045)
    assert tenth.joules_per_token == pytest.approx(300 * 0.0045)
