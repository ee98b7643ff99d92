"""Reproducible mode: logits as a pure function of a sequence's tokens, bit by bit.

What llama.cpp computes for a row depends on the shape of the microbatch that the row is in, and on
the order of the sequence's cells in the cache. Both are fixed here:

- Weights are not repacked and a microbatch has at most 6 rows, so every row takes the
  one-row-at-a-time kernels (the tiled ones begin at 8 rows).
- A microbatch never is one row, nor is a set of wanted logits: a single row in a context of 512 or
  more cells takes a flash attention that splits the cells among threads, and some weight types
  take other kernels for a single row. Filling rows, taken out again afterwards, see to that.
- Every sequence has cells of its own, used in order of position; rolling back frees the last.

With cells per sequence llama.cpp forms a microbatch of k sequences with consecutive numbers and
the same number t of rows each, and nothing else; `plan_microbatches` cuts a ragged batch into such
rectangles, so that llama.cpp has nothing left to split. `self_check` proves it for a model and a
build, as far as a few seconds allow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from multispin.errors import EngineFailed
from multispin.lm.base import LanguageModel, Rows
from multispin.types import Logits, TokenIds

MAX_MICROBATCH_ROWS = 6
_CALL_COST_ROWS = 1.0  # a llama_decode costs about as much as one row more


@dataclass(frozen=True)
class Microbatch:
    """Rows ``fed[seq]`` to ``fed[seq] + num_real[seq]`` of each sequence, filled to a rectangle."""

    first_seq: int
    num_seqs: int
    num_rows_each: int
    fed: dict[int, int]  # rows of this batch that earlier microbatches have fed
    num_real: dict[int, int]

    def source_rows(self, first_row: dict[int, int]) -> npt.NDArray[np.intp]:
        """Index into the batch for each row, -1 for a filling row: [num_seqs, num_rows_each]."""
        source = np.full((self.num_seqs, self.num_rows_each), -1, np.intp)
        for seq, count in self.num_real.items():
            begin = first_row[seq] + self.fed[seq]
            source[seq - self.first_seq, :count] = np.arange(begin, begin + count)
        return source


def plan_microbatches(num_rows: dict[int, int], num_sequences: int) -> Iterator[Microbatch]:
    """Cut ``num_rows[seq]`` rows of each sequence into rectangles, most real rows per cost first.

    Every row is in exactly one microbatch, those of a sequence in order.
    """
    left = dict(sorted(num_rows.items()))
    fed = dict.fromkeys(left, 0)
    while left:
        first = next(iter(left))
        num_seqs, num_rows_each = _best_rectangle(first, left, num_sequences)
        seqs = range(first, first + num_seqs)
        num_real = {seq: min(left[seq], num_rows_each) for seq in seqs if seq in left}
        # A sequence in between may be done, or not in the batch: it gets filling rows only.
        fed_before = {seq: fed.get(seq, 0) for seq in seqs}
        yield Microbatch(first, num_seqs, num_rows_each, fed_before, num_real)
        for seq, count in num_real.items():
            fed[seq] += count
            left[seq] -= count
            if left[seq] == 0:
                del left[seq]


def _best_rectangle(first: int, left: dict[int, int], num_sequences: int) -> tuple[int, int]:
    """The shape, beginning at sequence ``first``, with the most real rows for its cost."""
    best, best_value = (1, 2), 0.0
    for num_seqs in range(1, min(MAX_MICROBATCH_ROWS, num_sequences - first) + 1):
        waiting = [left.get(seq, 0) for seq in range(first, first + num_seqs)]
        for num_rows_each in range(1, MAX_MICROBATCH_ROWS // num_seqs + 1):
            num_computed = num_seqs * num_rows_each
            if num_computed < 2:
                continue
            num_real = sum(min(count, num_rows_each) for count in waiting)
            value = num_real / (num_computed + _CALL_COST_ROWS)
            if value > best_value:
                best, best_value = (num_seqs, num_rows_each), value
    return best


def self_check(model: LanguageModel) -> None:
    """Compare logits of the same tokens fed in different ways; every sequence must be empty.

    One at a time against many at once, beyond 256 tokens of context where llama.cpp changes its
    attention; after rejected rows; on a fork; in a ragged batch of up to nine sequences, in
    reverse order; in a sequence used before. Leaves every sequence empty.

    Raises EngineFailed at the first logit that is not bit-identical.
    """
    checker = _SelfCheck(model)
    checker.check_one_sequence()
    if model.num_sequences > 1:
        checker.check_many_sequences()
    for seq in range(model.num_sequences):
        model.free(seq)


class _SelfCheck:
    _NUM_COMPARED = 8
    _CHUNK_ROWS = 12
    _CONTEXT_LENGTH = 256 + 14  # past the first 256 cells, where attention may take another path

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        length = min(self._CONTEXT_LENGTH, model.context_length)
        self._tokens: TokenIds = (
            np.random.default_rng(7).integers(0, model.vocabulary.size, length).astype(np.int32)
        )

    def check_one_sequence(self) -> None:
        length, start = len(self._tokens), max(0, len(self._tokens) - self._NUM_COMPARED)
        for begin in range(0, start, self._CHUNK_ROWS):
            self._feed([(0, begin, min(begin + self._CHUNK_ROWS, start))])
        expected = self._one_at_a_time(0, start, length)
        self._model.truncate(0, start)
        self._compare(expected, self._feed([(0, start, length)]), "several rows at once")
        if start < length - 2:
            self._model.truncate(0, start)
            self._feed_rejected(0, start, 3)
            self._model.truncate(0, start)
            self._compare(expected, self._feed([(0, start, length)]), "rows after a rollback")

    def check_many_sequences(self) -> None:
        model = self._model
        num_sequences, length = min(model.num_sequences, 9), min(len(self._tokens), 8)
        last = num_sequences - 1
        # The long sequence stays, and moves on beside the short ones.
        long_start = len(self._tokens) - min(2, len(self._tokens))
        model.truncate(0, long_start)
        expected_long = self._one_at_a_time(0, long_start, len(self._tokens))
        model.truncate(0, long_start)
        expected = self._one_at_a_time(last, 0, length)
        runs = [(0, long_start, len(self._tokens))]
        for seq in range(1, num_sequences):
            begin = min(seq - 1, length - 1)
            if seq != last:
                model.fork(last, seq, begin)
            runs.append((seq, begin, length))
        model.truncate(last, runs[-1][1])
        parts = [expected_long] + [expected[begin:] for _, begin, _ in runs[1:]]
        self._compare(np.concatenate(parts[::-1]), self._feed(runs[::-1]), "a ragged batch")
        model.free(1)
        self._compare(expected, self._feed([(1, 0, length)]), "a sequence used before")

    def _one_at_a_time(self, seq: int, begin: int, end: int) -> Logits:
        return np.concatenate([self._feed([(seq, i, i + 1)]) for i in range(begin, end)])

    def _feed(self, runs: list[tuple[int, int, int]]) -> Logits:
        """Feed ``tokens[begin:end]`` to each (seq, begin, end), logits of all rows."""
        seq = np.concatenate([np.full(end - begin, seq, np.int32) for seq, begin, end in runs])
        position = np.concatenate([np.arange(b, e, dtype=np.int32) for _, b, e in runs])
        wants_logits = np.ones(len(seq), np.bool_)
        return self._model.forward(Rows(seq, position, self._tokens[position], wants_logits)).copy()

    def _feed_rejected(self, seq: int, begin: int, count: int) -> None:
        position = np.arange(begin, begin + count, dtype=np.int32)
        token = (self._tokens[position] + 1) % self._model.vocabulary.size
        rows = Rows(np.full(count, seq, np.int32), position, token, np.zeros(count, np.bool_))
        self._model.forward(rows)

    def _compare(self, expected: Logits, found: Logits, what: str) -> None:
        if not np.array_equal(expected, found):
            raise EngineFailed(
                f"{self._model.name}: not reproducible with this build of llama.cpp ({what} give "
                f"other logits than one token at a time, by up to "
                f"{np.abs(expected - found).max():.2g}); serve without --reproducible, or take "
                "another library (multispin doctor names it)"
            )
