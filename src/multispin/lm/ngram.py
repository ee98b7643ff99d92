"""A small real language model: interpolated n-grams, microseconds per token, no download."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import numpy as np
import numpy.typing as npt

from multispin.errors import BadInput
from multispin.lm.base import Rows, Vocabulary, fingerprint
from multispin.lm.pool import Pool
from multispin.types import Logits, TokenIds

END_OF_TEXT = 256
_END_PIECE = "<|end|>"
_PASSAGE_BREAK = "\n\n\n"
# A chat is a text like any other, after a list of the tools: the answer continues it.
_CHAT_TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }}\n{% endfor %}"
    "{{ messages | map(attribute='content') | join('\n') }}"
)


def corpus() -> str:
    """The text in the package that the model is built from; passages end in two empty lines."""
    return resources.files("multispin.lm").joinpath("corpus.txt").read_text("utf-8")


def byte_vocabulary() -> Vocabulary:
    """The 256 bytes and one token that ends a text."""
    pieces = bytes(range(256))
    offsets = np.minimum(np.arange(END_OF_TEXT + 2, dtype=np.int64), len(pieces))
    special, end_ids = {END_OF_TEXT: _END_PIECE}, frozenset({END_OF_TEXT})
    return Vocabulary(
        pieces=pieces,
        offsets=offsets,
        end_ids=end_ids,
        chat_template=_CHAT_TEMPLATE,
        special_pieces=special,
        fingerprint=fingerprint(pieces, offsets, special, end_ids),
    )


class NgramModel:
    """Witten-Bell interpolated n-grams as a `LanguageModel`.

    With c(h w) the count of token w after context h, c(h) its sum over w, and T(h) the number of
    different tokens seen after h:

        P(w | h) = (c(h w) + T(h) P(w | h')) / (c(h) + T(h)),   h' = h without its first token,

    and below the empty context the uniform distribution: every probability is above 0. Logits are
    log P. They depend on the last ``order`` - 1 tokens alone (Witten and Bell, 1991).
    """

    def __init__(
        self,
        ids: TokenIds,
        vocabulary: Vocabulary,
        *,
        name: str,
        order: int,
        num_sequences: int,
        context_length: int,
    ) -> None:
        if order < 1:
            raise BadInput("order", order, "must be at least 1")
        if len(ids) == 0 or int(ids.min()) < 0 or int(ids.max()) >= vocabulary.size:
            raise BadInput("ids", len(ids), f"must be token ids from 0 to {vocabulary.size - 1}")
        self.name = name
        self.vocabulary = vocabulary
        self.num_sequences = num_sequences
        self.context_length = context_length
        self._order = order
        self._pool = Pool(num_sequences, context_length, vocabulary.size)
        self._tokens = np.zeros((num_sequences, context_length), np.int32)
        self._levels = [_count_followers(ids, length) for length in range(1, order)]
        counts = np.bincount(ids, minlength=vocabulary.size).astype(np.float64)
        num_types = np.count_nonzero(counts)
        self._unigram = (counts + num_types / vocabulary.size) / (len(ids) + num_types)
        self._log_unigram = np.log(self._unigram).astype(np.float32)

    @classmethod
    def from_text(
        cls,
        text: str | None = None,
        *,
        order: int = 4,
        num_sequences: int = 8,
        context_length: int = 4096,
    ) -> NgramModel:
        """Over bytes, from ``text`` or from the `corpus` in the package."""
        passages = (corpus() if text is None else text).split(_PASSAGE_BREAK)
        ids = [id_ for passage in passages for id_ in (*passage.strip().encode(), END_OF_TEXT)]
        return cls(
            np.asarray(ids, np.int32),
            byte_vocabulary(),
            name="ngram",
            order=order,
            num_sequences=num_sequences,
            context_length=context_length,
        )

    @classmethod
    def from_tokens(
        cls,
        ids: TokenIds,
        vocabulary_size: int,
        vocabulary: Vocabulary | None = None,
        *,
        order: int = 4,
        num_sequences: int = 1,
        context_length: int = 4096,
    ) -> NgramModel:
        """Over another model's token ids: a drafter for it, knowing ids, and their bytes where it
        is given the vocabulary."""
        vocabulary = vocabulary or Vocabulary(
            pieces=b"", offsets=np.zeros(vocabulary_size + 1, np.int64), end_ids=frozenset()
        )
        return cls(
            np.asarray(ids, np.int32),
            vocabulary,
            name="ngram",
            order=order,
            num_sequences=num_sequences,
            context_length=context_length,
        )

    def tokenize(self, text: str, *, parse_special: bool = False) -> TokenIds:
        if not self.vocabulary.pieces:
            raise BadInput("text", repr(text[:20]), "tokenize with the model whose ids these are")
        parts = text.split(_END_PIECE) if parse_special else [text]
        ids = [id_ for part in parts for id_ in (*part.encode(), END_OF_TEXT)]
        return np.asarray(ids[:-1], np.int32)

    def forward(self, rows: Rows) -> Logits:
        starts, counts = self._pool.check_rows(rows)
        self._tokens[rows.seq, rows.position] = rows.token
        self._pool.extend(rows.seq[starts], counts)
        wanted = np.flatnonzero(rows.wants_logits)
        logits = np.empty((len(wanted), self.vocabulary.size), np.float32)
        for index, row in enumerate(wanted.tolist()):
            end = int(rows.position[row]) + 1
            context = self._tokens[rows.seq[row], max(0, end - self._order + 1) : end]
            self._write_logits(context, logits[index])
        return logits

    def truncate(self, seq: int, length: int) -> None:
        self._pool.check_length(seq, length)
        self._pool.lengths[seq] = length

    def fork(self, src: int, dst: int, length: int) -> None:
        self._pool.check_length(src, length)
        self._pool.check_seq(dst)
        self._tokens[dst, :length] = self._tokens[src, :length]
        self._pool.lengths[dst] = length

    def free(self, seq: int) -> None:
        self.truncate(seq, 0)

    def close(self) -> None:
        """Nothing to give back."""

    def _write_logits(self, context: TokenIds, logits: Logits) -> None:
        """log P(. | context): only the followers of the last token differ from a scaled unigram.

        A token that followed a longer context also followed the shorter ones, so each level's
        followers are among those of the level before.
        """
        scale = 1.0
        followers: TokenIds | None = None
        for length, level in enumerate(self._levels[: len(context)], start=1):
            counts = level.after(context[len(context) - length :])
            if counts is None:
                break
            weight = counts.num_types / (counts.total + counts.num_types)
            scale *= weight
            if followers is None:
                followers = counts.tokens
                probability = self._unigram[followers] * weight + counts.share
            else:
                probability *= weight
                probability[np.searchsorted(followers, counts.tokens)] += counts.share
        np.add(self._log_unigram, np.float32(np.log(scale)), out=logits)
        if followers is not None:
            logits[followers] = np.log(probability)


@dataclass(frozen=True)
class _Followers:
    tokens: TokenIds  # ascending
    share: npt.NDArray[np.float64]  # c(h w) / (c(h) + T(h))
    total: int  # c(h)
    num_types: int  # T(h)


class _Level:
    """The tokens seen after each context of one length."""

    def __init__(
        self, grams: npt.NDArray[np.int32], counts: npt.NDArray[np.int64], length: int
    ) -> None:
        self._tokens = np.ascontiguousarray(grams[:, length])
        self._counts = counts
        contexts = np.ascontiguousarray(grams[:, :length])
        begins = np.flatnonzero(
            np.concatenate([[True], (contexts[1:] != contexts[:-1]).any(axis=1)])
        )
        ends = [*begins[1:].tolist(), len(contexts)]
        self._slices = {
            contexts[begin].tobytes(): slice(begin, end)
            for begin, end in zip(begins.tolist(), ends, strict=True)
        }
        self._cache: dict[bytes, _Followers] = {}

    def after(self, context: TokenIds) -> _Followers | None:
        key = context.tobytes()
        found = self._cache.get(key)
        if found is None and key in self._slices:
            where = self._slices[key]
            counts = self._counts[where]
            total, num_types = int(counts.sum()), len(counts)
            found = _Followers(self._tokens[where], counts / (total + num_types), total, num_types)
            self._cache[key] = found
        return found


def _count_followers(ids: TokenIds, length: int) -> _Level:
    if len(ids) <= length:
        windows = np.zeros((0, length + 1), np.int32)
    else:
        windows = np.lib.stride_tricks.sliding_window_view(ids, length + 1)
    grams, counts = np.unique(windows, axis=0, return_counts=True)
    return _Level(grams.astype(np.int32), counts, length)
