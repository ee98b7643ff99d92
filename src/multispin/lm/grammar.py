"""Grammar-constrained decoding: what a JSON Schema lets stand next, applied to logits.

A mask is a function of the schema and of the text before it. What a matcher has been fed is
compared with that text each time, and brought to it by rolling back and feeding on: rejected
drafts, evictions, copies and crashes need no further care.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLTokenizer

from multispin.errors import BadInput, MultispinError
from multispin.lm.base import Vocabulary
from multispin.lm.json_grammar import compile_schema, tokenizer_of
from multispin.lm.prefix import num_common
from multispin.types import Logits, TokenIds

# Processor time that the masks of a text may take: so much for a start, then for each row. A row's
# ordinary mask takes 0.02 to 0.2 ms.
MAX_START_S = 0.5
MAX_ROW_S = 0.005


class Grammars:
    """One grammar at most for each of an engine's sequences. ``clock``: processor time."""

    def __init__(
        self, vocabulary: Vocabulary, clock: Callable[[], float] = time.thread_time
    ) -> None:
        self._vocabulary = vocabulary
        self._clock = clock
        self._matchers: dict[int, _Matcher] = {}

    def prepare(self) -> None:
        """Do now what the first schema would otherwise wait for: a second's work, or less."""
        if self._vocabulary.end_ids:
            _ = self._tokenizer

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        vocabulary = self._vocabulary
        if not vocabulary.end_ids:
            raise BadInput("json_schema", "…", "the target has no token that ends a text")
        offsets, pieces = vocabulary.offsets.tolist(), vocabulary.pieces
        texts = [pieces[begin:end] for begin, end in pairwise(offsets)]
        return tokenizer_of(texts, sorted(vocabulary.end_ids))

    @cached_property
    def _ends(self) -> npt.NDArray[np.intp]:
        return np.array(sorted(self._vocabulary.end_ids), np.intp)

    def constrain(
        self, seq: int, schema: str, text: TokenIds, draft: TokenIds, logits: Logits
    ) -> None:
        """Put logits to -inf where the schema forbids a token: row j, behind text + draft[:j].

        logits [L + 1, vocab], draft [L]; ``text`` is what has been written of the value. Rows
        behind a drafted token that is itself forbidden stay as they are: it will be rejected.
        Raises MultispinError for a text that the schema has not led to, and for a schema that
        takes too long.
        """
        began = self._clock()
        matcher = self._matcher_at(seq, schema, text)
        for j, row in enumerate(logits):
            forbidden = matcher.forbidden(self._vocabulary.size, self._ends)
            np.putmask(row, forbidden, -np.inf)
            if j == len(draft) or forbidden[draft[j]] or draft[j] in self._vocabulary.end_ids:
                break
            matcher.feed(draft[j : j + 1])
        matcher.spent_s += self._clock() - began
        matcher.num_rows += len(logits)
        if matcher.spent_s > MAX_START_S + MAX_ROW_S * matcher.num_rows:
            raise MultispinError("json_schema: takes too long to follow: simplify it")

    def _matcher_at(self, seq: int, schema: str, text: TokenIds) -> _Matcher:
        """One that has been fed the text: the one at hand, where it began the same."""
        matcher = self._matchers.get(seq)
        if matcher is None or matcher.schema != schema or not matcher.rewind_to(text):
            # Anew for each text: what a lexer learns on the way would grow for ever.
            matcher = _Matcher(schema, compile_schema(schema, self._tokenizer))
            self._matchers[seq] = matcher
        matcher.feed(text[len(matcher.fed) :])
        return matcher


class _Matcher:
    def __init__(self, schema: str, matcher: LLMatcher) -> None:
        self.schema = schema
        self.fed: TokenIds = np.zeros(0, np.int32)
        self.spent_s = 0.0
        self.num_rows = 0
        self._matcher = matcher

    def rewind_to(self, text: TokenIds) -> bool:
        """Forget what is not the text's; whether anything is left to build on."""
        common = num_common(self.fed, text)
        if common == 0 and len(self.fed):
            return False
        rolled_back = common == len(self.fed) or self._matcher.rollback(len(self.fed) - common)
        self.fed = self.fed[:common]
        return rolled_back and not self._matcher.is_error()

    def feed(self, tokens: TokenIds) -> None:
        num_fed = self._matcher.try_consume_tokens(tokens.tolist())
        self.fed = np.concatenate([self.fed, tokens[:num_fed]])
        if num_fed < len(tokens):
            error = self._matcher.get_error()
            raise MultispinError(f"json_schema: the text so far does not follow it {error}")

    def forbidden(self, size: int, ends: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
        """The tokens that may not come next [size]: an end but where the value is complete."""
        matcher = self._matcher
        if matcher.is_stopped() and not matcher.is_error():
            forbidden = np.ones(size, np.bool_)
        else:
            bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
            forbidden = np.unpackbits(~bits, count=size, bitorder="little").view(np.bool_)
        if matcher.is_error():
            raise MultispinError(f"json_schema: {matcher.get_error().splitlines()[0]}")
        forbidden[ends] = not matcher.is_accepting()
        if forbidden.all():
            raise MultispinError("json_schema: no token of the target's goes on with the value")
        return forbidden
