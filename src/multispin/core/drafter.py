"""What proposes tokens on a device: a language model, or a look at the text so far."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from multispin.acceptance import Context, Proposal, certain, choose, propose
from multispin.lm.base import LanguageModel, Rows, Vocabulary
from multispin.lm.lookup import lookup
from multispin.types import AcceptanceRule, Logits, SamplingParams, TokenIds

PROPOSAL_TOP_N = 64  # tokens of a draft distribution that the rule 'rejection' sends at most


class Drafted(NamedTuple):
    ids: TokenIds
    proposals: list[Proposal]  # one for each id under the rule 'rejection', else empty


class Drafter(Protocol):
    """Proposes continuations for up to ``num_sequences`` texts at a time."""

    name: str
    vocabulary: Vocabulary | None  # None: it has none of its own and adopts the target's
    num_sequences: int

    def draft(
        self,
        seq: int,
        tokens: TokenIds,
        num_prompt: int,
        length: int,
        params: SamplingParams,
        rule: AcceptanceRule,
        seed: int,
    ) -> Drafted:
        """Up to ``length`` tokens to follow ``tokens`` (prompt and committed)."""
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
        self._model = model
        self._end_ids = model.vocabulary.end_ids
        self._max_rows = max_rows
        self._cached: list[TokenIds] = [np.empty(0, np.int32)] * model.num_sequences

    def draft(
        self,
        seq: int,
        tokens: TokenIds,
        num_prompt: int,
        length: int,
        params: SamplingParams,
        rule: AcceptanceRule,
        seed: int,
    ) -> Drafted:
        length = min(length, self._model.context_length - len(tokens))
        if length <= 0:
            return Drafted(np.empty(0, np.int32), [])
        text = np.empty(len(tokens) + length, np.int32)
        text[: len(tokens)] = tokens
        end = len(tokens)
        proposals: list[Proposal] = []
        logits = self._feed(seq, tokens)
        while True:
            context = Context(text[:end], num_prompt)
            if rule == "rejection" and params.temperature > 0:
                token, proposal = propose(logits, params, seed, context, PROPOSAL_TOP_N)
                proposals.append(proposal)
            else:
                token = choose(logits, params, rule, seed, context)
            text[end] = token
            end += 1
            # Nothing follows the end of a text.
            if end == len(text) or token in self._end_ids:
                break
            logits = self._forward(seq, end - 1, text[end - 1 : end])
        # The last token was drafted but not fed.
        self._cached[seq] = text[: end - 1]
        return Drafted(text[len(tokens) : end], proposals)

    def free(self, seq: int) -> None:
        self._model.free(seq)
        self._cached[seq] = np.empty(0, np.int32)

    def _feed(self, seq: int, tokens: TokenIds) -> Logits:
        """Bring the cache to ``tokens``; the logits after the last of them."""
        cached = self._cached[seq]
        overlap = min(len(cached), len(tokens) - 1)
        differs = np.flatnonzero(cached[:overlap] != tokens[:overlap])
        common = int(differs[0]) if len(differs) else overlap
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


class LookupDrafter:
    """Prompt lookup: what followed the last words when they stood earlier in the text."""

    name = "lookup"
    vocabulary: Vocabulary | None = None
    num_sequences = 1 << 16

    def draft(
        self,
        seq: int,
        tokens: TokenIds,
        num_prompt: int,
        length: int,
        params: SamplingParams,
        rule: AcceptanceRule,
        seed: int,
    ) -> Drafted:
        ids = lookup(tokens, length)
        if rule != "rejection" or params.temperature == 0:
            return Drafted(ids, [])
        return Drafted(ids, [certain(token) for token in ids.tolist()])

    def free(self, seq: int) -> None:
        pass
