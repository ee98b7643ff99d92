"""Mixed drafts: a language model, and prompt lookup in its place where that is as certain.

A match of L tokens is sorted into levels as a confidence is. Per level, two numbers are learned at
the same places of the text: how often what was looked up is right, and how often the model is.
Where the first is at least the second the lookup is proposed, and the model, which would take
longer to say the same, does not run; its cache catches up in one batch when it is asked again.

The model's number must come from the same places: where a text repeats itself, models are right
more often than elsewhere. And a model that is better there is so even where it is unsure and the
lookup says something else, which then is right less than one time in ten (Qwen2.5-Coder).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from multispin.core.confidence import Calibration, level_of
from multispin.core.drafter import Drafted, Drafter, Sampler, looked_up, lookup_confidences
from multispin.lm.lookup import lookup
from multispin.lm.prefix import num_common
from multispin.types import TokenIds

MODEL_CLAIM = 0.95  # so often a model is right where something can be looked up, until it is known


class _Guess(NamedTuple):
    """What was proposed for one position."""

    position: int
    level: int  # of the match
    looked_up: int
    drafted: int | None  # by the model, if it was asked


class _Text(NamedTuple):
    tokens: TokenIds  # the last draft included
    guesses: list[_Guess]  # not judged yet


_NEW = _Text(np.empty(0, np.int32), [])


class MixedDrafter:
    """Prompt lookup and another drafter, token by token."""

    def __init__(self, model: Drafter) -> None:
        self.name = model.name
        self.vocabulary = model.vocabulary
        self.num_sequences = model.num_sequences
        self.is_light = model.is_light
        self._model = model
        self._lookup_worth = Calibration()
        self._model_worth = Calibration(MODEL_CLAIM)
        self._texts: dict[int, _Text] = {}

    def draft(self, seq: int, tokens: TokenIds, length: int, sampler: Sampler) -> Drafted:
        match = lookup(tokens, min(length, 1))
        if not len(match.ids):
            drafted = self._model.draft(seq, tokens, length, sampler)
            self._remember(seq, tokens, drafted, None)
            return drafted
        level = int(level_of(lookup_confidences(match))[0])
        worth = self._lookup_worth.acceptance[level]
        if worth >= self._model_worth.acceptance[level]:
            drafted = looked_up(match, np.array([worth], np.float32), sampler)
            drafted = drafted._replace(is_lookup=True)
            by_model = None
        else:
            drafted = self._model.draft(seq, tokens, length, sampler)
            by_model = int(drafted.ids[0]) if len(drafted.ids) else None
        guess = _Guess(len(tokens), level, int(match.ids[0]), by_model)
        self._remember(seq, tokens, drafted, guess)
        return drafted

    def _remember(self, seq: int, tokens: TokenIds, drafted: Drafted, guess: _Guess | None) -> None:
        guesses = self._texts.get(seq, _NEW).guesses
        new = [guess] if guess else []
        self._texts[seq] = _Text(np.concatenate([tokens, drafted.ids]), guesses + new)

    def learn(self, seq: int, committed: TokenIds) -> None:
        """Judge what was proposed after tokens that are committed; drop what stood on others."""
        text = self._texts.get(seq, _NEW)
        num_same = num_common(text.tokens, committed)
        is_dropped = num_same < min(len(text.tokens), len(committed))
        end = num_same + 1 if is_dropped else len(committed)
        for guess in text.guesses:
            if guess.position < end:
                self._judge(guess, int(committed[guess.position]))
        kept = [guess for guess in text.guesses if guess.position >= end and not is_dropped]
        self._texts[seq] = text._replace(guesses=kept)

    def _judge(self, guess: _Guess, token: int) -> None:
        self._lookup_worth.judge(guess.level, guess.looked_up == token)
        if guess.drafted is not None:
            self._model_worth.judge(guess.level, guess.drafted == token)

    def free(self, seq: int) -> None:
        self._model.free(seq)
        self._texts.pop(seq, None)
