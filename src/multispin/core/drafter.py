"""What proposes tokens on a device: a language model, or a look at the text so far."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from multispin.acceptance import Context, Proposal, certain, choose, propose
from multispin.lm.base import LanguageModel, Rows, Vocabulary
from multispin.lm.lookup import Match, lookup
from multispin.lm.prefix import num_common
from multispin.types import AcceptanceRule, Logits, SamplingParams, TokenIds

PROPOSAL_TOP_N = 64  # tokens of a draft distribution that the rule 'rejection' sends at most


class Drafted(NamedTuple):
    ids: TokenIds
    proposals: list[Proposal]  # one for each id under the rule 'rejection', else empty
    confidences: npt.NDArray[np.float32]  # [ids]: the drafter's probability of each
    is_lookup: bool = False  # in a model's place: no time was spent on a model

    @property
    def num_computed(self) -> int:
        """Tokens that took a model's time."""
        return 0 if self.is_lookup else len(self.ids)


class Sampler(NamedTuple):
    """How the tokens of a text are drawn that follow its prompt."""

    num_prompt: int
    params: SamplingParams
    rule: AcceptanceRule
    seed: int

    @property
    def sends_proposals(self) -> bool:
        """Whether the server must know what a token was drawn from."""
        return self.rule == "rejection" and self.params.temperature > 0


NOTHING = Drafted(np.empty(0, np.int32), [], np.empty(0, np.float32))


class Drafter(Protocol):
    """Proposes continuations for up to ``num_sequences`` texts at a time."""

    name: str
    vocabulary: Vocabulary | None  # None: it has none of its own and adopts the target's
    num_sequences: int
    is_light: bool  # drafts in microseconds: not worth a thread

    def draft(self, seq: int, tokens: TokenIds, length: int, sampler: Sampler) -> Drafted:
        """Up to ``length`` tokens to follow ``tokens``: the prompt, what is committed, and what
        was drafted after that and is not verified yet."""
        ...

    def learn(self, seq: int, committed: TokenIds) -> None:
        """This is how the text goes on: what was proposed for it can be judged. Called between
        drafts, by the thread that drafts."""
        ...

    def free(self, seq: int) -> None:
        """The text is finished; forget it."""
        ...


class ModelDrafter:
    """Drafts token by token with a language model, by the same rule as the server judges."""

    def __init__(
        self, model: LanguageModel, *, max_rows: int = 64, owns_vocabulary: bool = True
    ) -> None:
        self.name = model.name
        self.vocabulary = model.vocabulary if owns_vocabulary else None
        self.num_sequences = model.num_sequences
        self.is_light = False
        self._model = model
        self._end_ids = model.vocabulary.end_ids
        self._max_rows = max_rows
        self._cached: list[TokenIds] = [np.empty(0, np.int32)] * model.num_sequences

    def draft(self, seq: int, tokens: TokenIds, length: int, sampler: Sampler) -> Drafted:
        length = min(length, self._model.context_length - len(tokens))
        if length <= 0:
            return NOTHING
        text = np.empty(len(tokens) + length, np.int32)
        text[: len(tokens)] = tokens
        end = len(tokens)
        proposals: list[Proposal] = []
        confidences: list[float] = []
        num_prompt, params, rule, seed = sampler
        logits = self._feed(seq, tokens)
        while True:
            context = Context(text[:end], num_prompt)
            if sampler.sends_proposals:
                token, proposal = propose(logits, params, seed, context, PROPOSAL_TOP_N)
                proposals.append(proposal)
            else:
                token = choose(logits, params, rule, seed, context)
            confidences.append(confidence(logits, token, params.temperature))
            text[end] = token
            end += 1
            # Nothing follows the end of a text.
            if end == len(text) or token in self._end_ids:
                break
            logits = self._forward(seq, end - 1, text[end - 1 : end])
        # The last token was drafted but not fed.
        self._cached[seq] = text[: end - 1]
        return Drafted(text[len(tokens) : end], proposals, np.array(confidences, np.float32))

    def learn(self, seq: int, committed: TokenIds) -> None:
        pass

    def free(self, seq: int) -> None:
        self._model.free(seq)
        self._cached[seq] = np.empty(0, np.int32)

    def _feed(self, seq: int, tokens: TokenIds) -> Logits:
        """Bring the cache to ``tokens``; the logits after the last of them."""
        cached = self._cached[seq]
        common = num_common(cached, tokens[:-1])
        if common < len(cached):
            self._model.truncate(seq, common)
        for start in range(common, len(tokens), self._max_rows):
            logits = self._forward(seq, start, tokens[start : start + self._max_rows])
        return logits

    def _forward(self, seq: int, start: int, tokens: TokenIds) -> Logits:
        num_rows = len(tokens)
        wants = np.zeros(num_rows, np.bool_)
        wants[-1] = True
        position = np.arange(start, start + num_rows, dtype=np.int32)
        rows = Rows(np.full(num_rows, seq, np.int32), position, tokens, wants)
        row: Logits = self._model.forward(rows)[0]
        return row


def confidence(row: npt.NDArray[np.float32], token: int, temperature: float = 0.0) -> float:
    """softmax(row / T)[token], at temperature 0 as at 1.  row: float32 [vocab]

    Top-k, top-p and min-p are left out: they would raise it a little, and cost more than the sum.
    """
    weights = row - row.max()
    if temperature > 0:
        weights /= max(temperature, 1e-6)
    np.exp(weights, out=weights)
    return float(weights[token] / weights.sum())


class LookupDrafter:
    """Prompt lookup: what followed the last words when they stood earlier in the text."""

    name = "lookup"
    vocabulary: Vocabulary | None = None
    num_sequences = 1 << 16
    is_light = True

    def draft(self, seq: int, tokens: TokenIds, length: int, sampler: Sampler) -> Drafted:
        match = lookup(tokens, length)
        return looked_up(match, lookup_confidences(match), sampler)

    def learn(self, seq: int, committed: TokenIds) -> None:
        pass

    def free(self, seq: int) -> None:
        pass


def lookup_confidences(match: Match) -> npt.NDArray[np.float32]:
    """L / (L + 2) after a match of L tokens, every token that goes on with it making it longer.

    In Qwen2.5-Coder's code and answers the match went on after 1, 2, 3, 4 tokens in 0.2, 0.5, 0.6,
    0.7 of the cases, after 16 or more in 0.95.
    """
    lengths = match.length + np.arange(len(match.ids))
    return np.asarray(lengths / (lengths + 2.0), np.float32)


def looked_up(match: Match, confidences: npt.NDArray[np.float32], sampler: Sampler) -> Drafted:
    is_needed = sampler.sends_proposals
    proposals = [certain(token) for token in match.ids.tolist()] if is_needed else []
    return Drafted(match.ids, proposals, confidences)
