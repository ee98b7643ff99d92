"""A random walk over everything that may happen to the sequences of a model.

Each sequence follows one of two token streams. A step feeds a random set of sequences a random
number of rows each, some of them followed by junk that is rolled back; between steps, sequences
are truncated, forked and freed. Whenever logits are asked for, their digest must be the one that
the same stream gave when it was fed one token at a time in a model of its own.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from multispin.lm.base import LanguageModel, Rows
from multispin.types import Logits, TokenIds


def rows_of(seq: int, begin: int, tokens: TokenIds, *, wants: bool = True) -> Rows:
    count = len(tokens)
    return Rows(
        np.full(count, seq, np.int32),
        np.arange(begin, begin + count, dtype=np.int32),
        np.asarray(tokens, np.int32),
        np.full(count, wants, np.bool_),
    )


def joined(parts: list[Rows]) -> Rows:
    return Rows(
        np.concatenate([p.seq for p in parts]),
        np.concatenate([p.position for p in parts]),
        np.concatenate([p.token for p in parts]),
        np.concatenate([p.wants_logits for p in parts]),
    )


def digest(row: Logits) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=16).digest()


def one_at_a_time(model: LanguageModel, stream: TokenIds) -> list[bytes]:
    """Digest of the logits after each token, from an empty sequence 0."""
    model.free(0)
    digests = [
        digest(model.forward(rows_of(0, i, stream[i : i + 1]))[0]) for i in range(len(stream))
    ]
    model.free(0)
    return digests


@dataclass
class Walk:
    model: LanguageModel
    streams: list[TokenIds]
    references: list[list[bytes]]
    rng: np.random.Generator
    max_rows: int = 64
    stream_of: dict[int, int] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        for seq in range(self.model.num_sequences):
            self.stream_of[seq] = seq % len(self.streams)
            self.lengths[seq] = 0

    def prefill(self, seq: int, length: int) -> None:
        """Bring an empty sequence to a length in chunks, so that the walk begins far out."""
        stream = self.streams[self.stream_of[seq]]
        for begin in range(0, length, self.max_rows):
            end = min(begin + self.max_rows, length)
            self.model.forward(rows_of(seq, begin, stream[begin:end], wants=False))
        self.lengths[seq] = length

    def step(self) -> None:
        for _ in range(self.rng.integers(0, 3)):
            self._change_one()
        num_sequences = self.model.num_sequences
        chosen = self.rng.permutation(num_sequences)[: self.rng.integers(1, num_sequences + 1)]
        parts: list[Rows] = []
        expected: list[bytes] = []
        rollbacks: list[tuple[int, int]] = []
        room = self.max_rows
        style = self.rng.choice(["single", "draft", "prefill"])
        for seq in chosen.tolist():
            begin = self.lengths[seq]
            stream = self.streams[self.stream_of[seq]]
            most = {"single": 1, "draft": 9, "prefill": 64}[style]
            num_true = min(int(self.rng.integers(1, most + 1)), len(stream) - begin, room)
            if num_true < 1:
                continue
            rows = rows_of(seq, begin, stream[begin : begin + num_true])
            rows.wants_logits = self.rng.random(num_true) < self.rng.choice([0.1, 0.9, 1.0])
            parts.append(rows)
            reference = self.references[self.stream_of[seq]]
            expected += [reference[begin + i] for i in np.flatnonzero(rows.wants_logits)]
            room -= num_true
            self.lengths[seq] = begin + num_true
            num_junk = min(int(self.rng.integers(0, 6)), len(stream) - begin - num_true, room)
            if style == "draft" and num_junk > 0:
                junk = self.rng.integers(0, self.model.vocabulary.size, num_junk).astype(np.int32)
                parts.append(rows_of(seq, begin + num_true, junk, wants=False))
                rollbacks.append((seq, begin + num_true))
                room -= num_junk
        if not parts:
            return
        found = [digest(row) for row in self.model.forward(joined(parts))]
        assert found == expected, f"step differs: {style}, {len(parts)} parts, {self.lengths}"
        self.counts["logits compared"] += len(found)
        self.counts[f"{style} batches"] += 1
        for seq, length in rollbacks:
            self.model.truncate(seq, length)
            self.counts["rejected drafts"] += 1

    def _change_one(self) -> None:
        # The longest sequence is only ever cut, so that contexts stay long.
        longest = max(self.lengths, key=self.lengths.__getitem__)
        others = [seq for seq in self.lengths if seq != longest]
        seq = int(self.rng.choice([longest, *others]))
        change = str(self.rng.choice(["truncate", "fork", "free"], p=[0.45, 0.45, 0.1]))
        if seq == longest:
            change = "truncate"
        if change == "truncate":
            length = self.lengths[seq] - min(self.lengths[seq], int(self.rng.integers(1, 40)))
            self.model.truncate(seq, length)
            self.lengths[seq] = length
        elif change == "fork":
            source = int(self.rng.integers(self.model.num_sequences))
            length = int(self.lengths[source] * self.rng.random())
            length = max(length, self.lengths[source] - 50)
            self.model.fork(source, seq, length)
            self.lengths[seq], self.stream_of[seq] = length, self.stream_of[source]
        else:
            self.model.free(seq)
            self.lengths[seq] = 0
        self.counts[change] += 1
