"""One verification step: forward pass, then acceptance beside the logits.

The engine knows sequences, not sessions: it is told what to feed and what to judge, and answers
with a few integers. Logits never leave it, so it can live in a process of its own.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec
import numpy as np

from multispin.acceptance import Context, Proposal, Verdict, verify
from multispin.core.logprobs import RowLogprobs, row_logprobs
from multispin.core.replay import Paths, follow
from multispin.errors import MultispinError
from multispin.lm.base import LanguageModel, Rows, Vocabulary
from multispin.lm.grammar import Grammars
from multispin.lm.record import Record
from multispin.types import AcceptanceRule, SamplingParams, TokenIds


class Work(msgspec.Struct, array_like=True, frozen=True):
    """What one session wants of a batch.

    ``tokens`` (little-endian int32) are fed from position ``start`` on, which must be the length
    of the sequence's cache. The last ``num_draft`` of them are a draft to be judged. With
    ``samples`` False the work only fills the cache: a chunk of a prompt.
    """

    seq: int
    start: int
    tokens: bytes
    num_draft: int
    samples: bool
    num_prompt: int
    params: SamplingParams
    rule: AcceptanceRule
    seed: int
    proposals: list[tuple[bytes, bytes]] = []  # ids as int32, counts less one as uint16
    num_logprobs: int = -1  # as in wire.frames.Open
    json_schema: str = ""

    @property
    def num_rows(self) -> int:
        return len(self.tokens) // 4


class Copy(msgspec.Struct, array_like=True, frozen=True):
    """Make sequence ``target`` hold the first ``length`` tokens of ``source``, which may be the
    same one: then it is cut."""

    source: int
    target: int
    length: int


def emptied(seq: int) -> Copy:
    """The order to forget all that a sequence holds."""
    return Copy(seq, seq, 0)


class Batch(msgspec.Struct, array_like=True, frozen=True):
    """One forward pass, after the ``copies``, which are made in their order."""

    works: list[Work]
    copies: list[Copy] = []

    @property
    def num_rows(self) -> int:
        return sum(work.num_rows for work in self.works)


class Outcome(msgspec.Struct, array_like=True, frozen=True):
    """The judgement of one work: accepted draft tokens, and the token that comes after them.

    Both are 0 for a work that does not sample, and for one that could not be judged: ``failure``
    says why, and only its session ends. ``logprobs``, where asked for: of accepted tokens and
    ``token``.
    """

    num_accepted: int
    token: int
    failure: str | None = None
    logprobs: list[RowLogprobs] = []


class StepResult(msgspec.Struct, array_like=True, frozen=True):
    """One outcome for each work, and the time that the forward pass took.

    ``num_replay_differences`` of the outcomes are a record's where the logits say otherwise.
    """

    outcomes: list[Outcome]
    forward_s: float
    num_replay_differences: int = 0


class PassTime(msgspec.Struct, array_like=True, frozen=True):
    """One verification pass that was timed."""

    num_rows: int
    num_sequences: int
    seconds: float


class EngineInfo(msgspec.Struct, frozen=True):
    """What the server needs to know of the model without having it in its own process."""

    target: str
    fingerprint: str
    pieces: bytes
    offsets: bytes  # int64 [vocabulary size + 1]
    end_ids: list[int]
    bos_id: int | None
    chat_template: str | None
    special_pieces: dict[int, str]
    num_sequences: int
    context_length: int
    max_rows: int
    reproducible: bool
    passes: list[PassTime] = []  # measured at the start
    has_logits: bool = True  # else there are no log-probabilities, and nothing can be constrained

    def vocabulary(self) -> Vocabulary:
        return Vocabulary(
            pieces=self.pieces,
            offsets=np.frombuffer(self.offsets, np.int64),
            end_ids=frozenset(self.end_ids),
            bos_id=self.bos_id,
            chat_template=self.chat_template,
            special_pieces=self.special_pieces,
            fingerprint=self.fingerprint,
        )


class StepEngine(Protocol):
    """What the network server drives; the engine here, or the same one in a child process."""

    info: EngineInfo

    @property
    def ready(self) -> bool:
        """False while the model is loaded again after a crash."""
        ...

    def step(self, batch: Batch) -> Awaitable[StepResult]:
        """May begin before it is awaited. Raise EngineLost when it crashed and every cache is
        gone."""
        ...

    async def tokenize(self, text: str, *, parse_special: bool) -> TokenIds: ...

    async def close(self) -> None: ...


class Engine:
    """Forward and judge, over one language model.

    With a ``record``, texts that it holds are judged by their logits all the same, and then go on
    as recorded: a near-tie that falls differently does not derail a measurement.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        max_rows: int,
        reproducible: bool = False,
        record: Record | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = model
        self._paths = Paths(record, model.num_sequences) if record else None
        self._num_differences = 0  # in the running step
        self._clock = clock
        self.grammars = Grammars(model.vocabulary)
        # What each sequence has been fed: penalties look at the whole text so far.
        self._history = np.zeros((model.num_sequences, model.context_length + max_rows), np.int32)
        vocabulary = model.vocabulary
        self.info = EngineInfo(
            target=model.name,
            fingerprint=vocabulary.fingerprint,
            pieces=vocabulary.pieces,
            offsets=np.asarray(vocabulary.offsets, np.int64).tobytes(),
            end_ids=sorted(vocabulary.end_ids),
            bos_id=vocabulary.bos_id,
            chat_template=vocabulary.chat_template,
            special_pieces=vocabulary.special_pieces,
            num_sequences=model.num_sequences,
            context_length=model.context_length,
            max_rows=max_rows,
            reproducible=reproducible,
        )

    def tokenize(self, text: str, parse_special: bool) -> TokenIds:
        return self._model.tokenize(text, parse_special=parse_special)

    def step(self, batch: Batch) -> StepResult:
        """Run the batch. Afterwards each sequence holds its committed tokens but the newest."""
        for copy in batch.copies:
            self._copy(copy)
        rows = self._rows(batch.works)
        began = self._clock()
        logits = self._model.forward(rows)
        forward_s = self._clock() - began
        self._num_differences = 0
        outcomes = []
        row = 0
        for work in batch.works:
            if not work.samples:
                outcomes.append(Outcome(0, 0))
                continue
            num_judged = work.num_draft + 1
            try:
                outcomes.append(self._judge(work, logits[row : row + num_judged]))
            except MultispinError as error:
                outcomes.append(Outcome(0, 0, str(error)))
            row += num_judged
        return StepResult(outcomes, forward_s, self._num_differences)

    def _copy(self, copy: Copy) -> None:
        self._model.fork(copy.source, copy.target, copy.length)
        self._history[copy.target, : copy.length] = self._history[copy.source, : copy.length]
        if self._paths:
            self._paths.copy(copy.source, copy.target, copy.length)

    def _rows(self, works: list[Work]) -> Rows:
        token = np.frombuffer(b"".join(work.tokens for work in works), np.dtype("<i4"))
        seq, position = np.empty_like(token), np.empty_like(token)
        wants_logits = np.zeros(len(token), np.bool_)
        end = 0
        for work in works:
            begin, end = end, end + work.num_rows
            seq[begin:end] = work.seq
            position[begin:end] = np.arange(work.start, work.start + work.num_rows)
            if work.samples:
                wants_logits[end - work.num_draft - 1 : end] = True
            if self._paths:
                self._paths.feed(work.seq, work.start, work.tokens)
        self._history[seq, position] = token
        return Rows(seq, position, token, wants_logits)

    def _judge(self, work: Work, logits: np.ndarray) -> Outcome:
        kept = work.start + work.num_rows - work.num_draft
        raw = logits.copy() if work.num_logprobs >= 0 else logits  # rows are changed in place
        if work.json_schema:
            self._constrain(work, logits, kept)
        verdict = self._verdict(work, logits, kept)
        if self._paths and not work.json_schema:
            verdict = self._replayed(self._paths, work, logits, kept, verdict)
        if verdict.num_accepted < work.num_draft:
            self._model.truncate(work.seq, kept + verdict.num_accepted)
        if work.num_logprobs < 0:
            return Outcome(verdict.num_accepted, verdict.token)
        drafted = self._history[work.seq, kept : kept + verdict.num_accepted].tolist()
        chosen = [*drafted, verdict.token]
        logprobs = row_logprobs(raw[: len(chosen)], chosen, work.num_logprobs)
        return Outcome(verdict.num_accepted, verdict.token, logprobs=logprobs)

    def _constrain(self, work: Work, logits: np.ndarray, kept: int) -> None:
        history = self._history[work.seq]
        text, draft = history[work.num_prompt : kept], history[kept : work.start + work.num_rows]
        self.grammars.constrain(work.seq, work.json_schema, text, draft, logits)

    def _verdict(self, work: Work, logits: np.ndarray, kept: int) -> Verdict:
        """Of everything that was fed behind the first ``kept`` tokens."""
        history = self._history[work.seq]
        return verify(
            logits,
            history[kept : work.start + work.num_rows],
            work.params,
            work.rule,
            work.seed,
            Context(history[:kept], work.num_prompt),
            [
                Proposal(
                    np.frombuffer(ids, np.dtype("<i4")),
                    np.frombuffer(counts, np.dtype("<u2")).astype(np.uint32) + 1,
                )
                for ids, counts in work.proposals
            ]
            or None,
        )

    def _replayed(
        self, paths: Paths, work: Work, logits: np.ndarray, kept: int, verdict: Verdict
    ) -> Verdict:
        """The record's judgement instead of the logits', as far as it goes; from there on theirs.

        They differ if the logits accept less, or lead to another token than the recorded one.
        """
        ahead = paths.ahead(work.seq, work.num_prompt, kept, work.params)
        if not ahead:
            return verdict
        num_equal, token = follow(work.tokens[len(work.tokens) - 4 * work.num_draft :], ahead)
        if token is not None:
            self._num_differences += verdict != (num_equal, token)
            return Verdict(num_equal, token)
        self._num_differences += verdict.num_accepted < num_equal
        further = self._verdict(work, logits[num_equal:], kept + num_equal)
        return Verdict(num_equal + further.num_accepted, further.token)
