"""Which of model and lookup proposes, what is learned from the text, and the model's cache."""

from __future__ import annotations

import numpy as np
import pytest

from multispin.core.drafter import Drafted, ModelDrafter, Sampler
from multispin.core.mixed import MixedDrafter
from multispin.lm.ngram import NgramModel
from multispin.types import AcceptanceRule, SamplingParams, TokenIds

PERIOD = np.array([3, 1, 4, 1, 5, 9, 2, 6], np.int32)
NUM_PROMPT = 4 * len(PERIOD)
GREEDY = SamplingParams()


class Oracle(ModelDrafter):
    """Knows how the text goes on, and says so with a probability of ``right``."""

    def __init__(self, text: TokenIds, right: float) -> None:
        super().__init__(NgramModel.from_text(num_sequences=4))
        self.num_drafts = 0
        self._text = text
        self._right = right
        self._rng = np.random.default_rng(1)

    def draft(self, seq: int, tokens: TokenIds, *arguments: object) -> Drafted:  # type: ignore[override]
        self.num_drafts += 1
        is_wrong = self._rng.random() >= self._right
        token = self._text[len(tokens)] + 100 * is_wrong
        return Drafted(np.array([token], np.int32), [], np.full(1, 0.9, np.float32))


def propose(
    drafter: MixedDrafter | ModelDrafter,
    tokens: TokenIds,
    params: SamplingParams = GREEDY,
    rule: AcceptanceRule = "greedy",
) -> Drafted:
    return drafter.draft(0, tokens, 1, Sampler(NUM_PROMPT, params, rule, 0))


def periodic_text(repeats: float, num_tokens: int = 1200) -> TokenIds:
    """Repeats itself, but for a share of tokens that were never there before."""
    rng = np.random.default_rng(0)
    text = np.resize(PERIOD, num_tokens)
    breaks = np.flatnonzero(rng.random(num_tokens) >= repeats)
    breaks = breaks[breaks >= NUM_PROMPT]
    text[breaks] = 1000 + np.arange(len(breaks))
    return text


def share_of_lookups(right: float, repeats: float) -> tuple[float, int]:
    """Over the last 300 tokens of a text; and how often the model ran for them."""
    text = periodic_text(repeats)
    model = Oracle(text, right)
    drafter = MixedDrafter(model)
    num_lookups = num_before = 0
    for end in range(NUM_PROMPT, len(text)):
        if end == len(text) - 300:
            num_lookups, num_before = 0, model.num_drafts
        drafter.learn(0, text[:end])
        num_lookups += propose(drafter, text[:end]).is_lookup
    return num_lookups / 300, model.num_drafts - num_before


def test_the_more_certain_of_the_two_proposes() -> None:
    share, num_runs = share_of_lookups(right=0.6, repeats=0.97)
    assert share > 0.8
    assert num_runs == 300 - round(300 * share)  # a lookup costs no run of the model
    assert share_of_lookups(right=0.99, repeats=0.7)[0] < 0.1


def test_a_lookup_is_as_sure_as_its_kind_has_been_right() -> None:
    text = periodic_text(0.6, 4000)
    drafter = MixedDrafter(Oracle(text, 0.1))
    confidences, is_right = [], []
    for end in range(NUM_PROMPT, len(text)):
        drafter.learn(0, text[:end])
        drafted = propose(drafter, text[:end])
        if drafted.is_lookup and end > 1000:
            confidences.append(drafted.confidences[0])
            is_right.append(drafted.ids[0] == text[end])
    # More than 1500 tokens: three standard deviations, and what the priors add.
    assert len(is_right) > 1500
    assert np.mean(confidences) == pytest.approx(np.mean(is_right), abs=0.04 + 0.02)


def test_what_stood_on_a_dropped_path_is_not_judged() -> None:
    text = periodic_text(1.0)
    drafter = MixedDrafter(Oracle(text, 1.0))
    path = text[:NUM_PROMPT]
    for _ in range(6):  # ahead of the verdicts
        path = np.concatenate([path, propose(drafter, path).ids])
    committed = np.concatenate([text[: NUM_PROMPT + 2], [777, *text[NUM_PROMPT + 3 :][:6]]])
    drafter.learn(0, committed.astype(np.int32))
    # Two were right, one was not; how the rest compares is chance.
    judged = np.array(drafter._lookup_worth._judged)
    assert judged.sum() == pytest.approx(3, abs=0.1)
    assert sum(drafter._lookup_worth._accepted) == pytest.approx(2, abs=0.1)
    assert drafter._texts[0].guesses == []
    drafter.learn(0, committed.astype(np.int32))
    assert (np.array(drafter._lookup_worth._judged) == judged).all()


def test_what_is_still_in_flight_is_judged_later() -> None:
    text = periodic_text(1.0)
    drafter = MixedDrafter(Oracle(text, 1.0))
    for end in range(NUM_PROMPT, NUM_PROMPT + 6):
        propose(drafter, text[:end])
    drafter.learn(0, text[: NUM_PROMPT + 2])
    assert len(drafter._texts[0].guesses) == 4
    drafter.learn(0, text[: NUM_PROMPT + 6])
    assert sum(drafter._lookup_worth._judged) == pytest.approx(6, abs=0.3)


class Impatient(MixedDrafter):
    """Looks up whatever can be looked up, every other time."""

    def __init__(self) -> None:
        super().__init__(ModelDrafter(NgramModel.from_text(num_sequences=1)))
        self.num_lookups = 0

    def draft(self, seq: int, tokens: TokenIds, *arguments: object) -> Drafted:  # type: ignore[override]
        self._model_worth.acceptance[:] = (len(tokens) // 3) % 2
        drafted = super().draft(seq, tokens, *arguments)  # type: ignore[arg-type]
        self.num_lookups += drafted.is_lookup
        return drafted


def test_the_models_cache_catches_up_after_lookups() -> None:
    mixed, fresh = Impatient(), ModelDrafter(NgramModel.from_text(num_sequences=1))
    text = np.frombuffer(b"the phone and the server and the ", np.uint8).astype(np.int32)
    num_by_model = 0
    for step in range(60):
        drafted = propose(mixed, text)
        if not drafted.is_lookup:
            fresh.free(0)
            expected = propose(fresh, text)
            assert drafted.ids.tolist() == expected.ids.tolist()
            assert drafted.confidences == pytest.approx(expected.confidences)
            num_by_model += 1
        text = np.concatenate([text, drafted.ids])
        if step % 7 == 6:
            # A roll-back: the cache holds what was dropped.
            text[-4:] = np.frombuffer(b"the ", np.uint8)
    assert min(num_by_model, mixed.num_lookups) > 10


def test_the_rule_rejection_gets_a_proposal_with_every_token() -> None:
    text = periodic_text(1.0)[:NUM_PROMPT]
    mixed = Impatient()
    for tokens in (text, text[:-3]):
        drafted = propose(mixed, tokens, SamplingParams(1.0), "rejection")
        assert len(drafted.proposals) == len(drafted.ids) == 1
    assert mixed.num_lookups == 1
