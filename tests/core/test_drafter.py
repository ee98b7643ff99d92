"""What every drafter tells with its tokens, and what drafting token by token costs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from multispin.core.drafter import LookupDrafter, ModelDrafter, Sampler
from multispin.lm.base import Rows
from multispin.lm.ngram import NgramModel
from multispin.types import AcceptanceRule, Logits, SamplingParams, TokenIds

PROMPT = np.frombuffer(b"The phone drafts and the server ", np.uint8).astype(np.int32)


class Counting(NgramModel):
    """Counts the rows that it is fed."""

    num_rows = 0

    def forward(self, rows: Rows) -> Logits:
        self.num_rows += len(rows.token)
        return super().forward(rows)


def logits_after(tokens: TokenIds) -> Logits:
    model = NgramModel.from_text(num_sequences=1)
    position = np.arange(len(tokens), dtype=np.int32)
    return model.forward(Rows(position * 0, position, tokens, position == len(tokens) - 1))[0]


@pytest.mark.parametrize(("temperature", "rule"), [(0.0, "greedy"), (0.7, "coupled")])
def test_confidences_are_the_models_probabilities(temperature: float, rule: AcceptanceRule) -> None:
    drafter = ModelDrafter(NgramModel.from_text(num_sequences=1))
    drafted = drafter.draft(
        0, PROMPT, 12, Sampler(len(PROMPT), SamplingParams(temperature), rule, 5)
    )
    text = np.concatenate([PROMPT, drafted.ids])
    for i, (token, sureness) in enumerate(zip(drafted.ids, drafted.confidences, strict=True)):
        logits = logits_after(text[: len(PROMPT) + i]).astype(np.float64)
        expected = softmax(logits / (temperature or 1.0))[token]
        assert sureness == pytest.approx(expected, rel=1e-4)
    assert len(drafted.ids) == 12


@pytest.mark.parametrize("temperature", [1e-30, 1e-9, 100.0])
def test_confidences_stay_finite_at_any_temperature(temperature: float) -> None:
    drafter = ModelDrafter(NgramModel.from_text(num_sequences=1))
    params = SamplingParams(temperature)
    drafted = drafter.draft(0, PROMPT, 4, Sampler(len(PROMPT), params, "coupled", 5))
    assert ((drafted.confidences > 0) & (drafted.confidences <= 1)).all()


def test_drafting_one_by_one_gives_the_same_and_feeds_each_token_once() -> None:
    at_once = ModelDrafter(NgramModel.from_text(num_sequences=1)).draft(
        0, PROMPT, 16, Sampler(len(PROMPT), SamplingParams(), "greedy", 0)
    )
    model = Counting.from_text(num_sequences=1)
    drafter = ModelDrafter(model)
    text = PROMPT
    for _ in range(16):
        drafted = drafter.draft(0, text, 1, Sampler(len(PROMPT), SamplingParams(), "greedy", 0))
        text = np.concatenate([text, drafted.ids])
    assert text[len(PROMPT) :].tolist() == at_once.ids.tolist()
    assert isinstance(model, Counting)
    assert model.num_rows == len(PROMPT) + 15


@pytest.mark.parametrize(("temperature", "rule"), [(0.0, "greedy"), (0.7, "rejection")])
def test_every_token_that_is_looked_up_has_a_confidence(
    temperature: float, rule: AcceptanceRule
) -> None:
    text = np.array([1, 2, 3, 4, 1, 2], np.int32)
    drafted = LookupDrafter().draft(0, text, 3, Sampler(6, SamplingParams(temperature), rule, 0))
    assert drafted.ids.tolist() == [3, 4, 1]
    assert drafted.confidences.shape == (3,)
