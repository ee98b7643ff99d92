"""Texts whose links are lost are the texts that they would have been."""

from __future__ import annotations

import random

import msgspec
import pytest

from multispin.core.batch import BatchLimits
from multispin.wire.frames import Open
from tests.core import test_json_schema, test_logprobs
from tests.core.harness import (
    ONE_BY_ONE,
    PROMPT,
    new_engine,
    new_server,
    request,
    write,
)
from tests.core.test_server import GREEDY, alone
from tests.core.test_window import WINDOW, drafter
from tests.core.travel import Traveller, travel

ROUNDS = BatchLimits(mode="rounds", round_timeout_s=0.01)
MODES = {"window": WINDOW, "stop-and-wait": ONE_BY_ONE, "rounds": ROUNDS}


def journey(
    message: Open, kind: str, seed: int, limits: BatchLimits = WINDOW, num_breaks: int = 6
) -> Traveller:
    """One text over links that break."""
    traveller = Traveller("t", message, drafter(kind))
    harness = travel([traveller], lambda: new_server(batch=limits), random.Random(seed), num_breaks)
    assert harness.core.num_sessions == 0
    return traveller


@pytest.mark.parametrize("limits", MODES.values(), ids=MODES)
@pytest.mark.parametrize("kind", ["none", "lookup", "weaker", "same", "storm"])
@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        {"temperature": 0.8},
        {"temperature": 0.7, "repetition_penalty": 1.3, "frequency_penalty": 0.6},
    ],
)
def test_the_text_is_the_targets_own(kind: str, params: dict, limits: BatchLimits) -> None:
    for seed in range(2):
        message = request(draft_length=8, max_tokens=60, seed=seed, **params)
        traveller = journey(message, kind, seed, limits)
        assert traveller.committed == alone(message)
        assert traveller.text == bytes(traveller.committed).decode(errors="replace")
        assert (traveller.finish == "length") == (len(traveller.committed) == 60)


def test_both_ways_back_are_taken() -> None:
    ways = [journey(request(max_tokens=60), "weaker", seed).num_resumed for seed in range(6)]
    assert sum(by_token for by_token, _ in ways) > 0
    assert sum(by_ids for _, by_ids in ways) > 0


@pytest.mark.parametrize("limits", MODES.values(), ids=MODES)
def test_a_stop_sequence_is_found_across_the_seam(limits: BatchLimits) -> None:
    for seed in range(4):
        message = request(max_tokens=80, seed=seed, draft_length=8)
        whole = write(message, "none").text
        at = random.Random(seed).randrange(len(whole) // 2, len(whole) - 3)
        message = msgspec.structs.replace(message, stop=[whole[at - 4 : at + 3], "\x00"])
        undisturbed = write(message, "none")
        traveller = journey(message, "weaker", seed, limits, num_breaks=30)
        assert traveller.committed == undisturbed.session.committed
        assert traveller.text == undisturbed.text
        assert traveller.finish == "stop"


@pytest.mark.parametrize("limits", MODES.values(), ids=MODES)
def test_a_schema_is_followed_across_the_seam(limits: BatchLimits) -> None:
    for seed in range(2):
        message = test_json_schema.wanted(seed=seed, draft_length=6)
        traveller = journey(message, "weaker", seed, limits, num_breaks=20)
        assert traveller.committed == test_json_schema.alone(message)


@pytest.mark.parametrize("limits", MODES.values(), ids=MODES)
def test_log_probabilities_are_told_once_for_each_token(limits: BatchLimits) -> None:
    for seed in range(2):
        message = test_logprobs.wanted(seed=seed, temperature=0.7)
        traveller = journey(message, "weaker", seed, limits, num_breaks=20)
        committed, told = test_logprobs.logprobs_of(message, "none")
        assert traveller.committed == committed
        assert traveller.logprobs == told


def test_the_rule_rejection_goes_on_too() -> None:
    for seed in range(5):
        message = request(rule="rejection", temperature=1.0, max_tokens=60, seed=seed)
        traveller = journey(message, "same", seed)
        assert (traveller.finish == "length") == (len(traveller.committed) == 60)


@pytest.mark.parametrize("limits", MODES.values(), ids=MODES)
def test_many_texts_over_few_sequences(limits: BatchLimits) -> None:
    for seed in range(2):
        rng = random.Random(seed)
        kinds = ["none", "lookup", "weaker", "same", "storm"]
        travellers = [
            Traveller(
                str(i),
                request(i % 2, PROMPT * rng.randint(1, 3), max_tokens=40, seed=i, draft_length=8),
                drafter(rng.choice(kinds)),
            )
            for i in range(6)
        ]
        harness = travel(travellers, lambda: new_server(new_engine(3), batch=limits), rng, 40)
        for traveller in travellers:
            assert traveller.committed == alone(traveller.request)
        assert harness.core.num_sessions == 0
