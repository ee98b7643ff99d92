"""Batched speculation on the server itself: the drafter's passes take turns with the target's.

In one process, without a network: for all K texts L tokens are drafted, one pass of the drafter for
each, then all are verified in one pass of the engine that serves devices. With cost models nothing
is computed: the time of each pass is added up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from multispin.bench.devices import Tell, Wrote
from multispin.bench.measures import Measured, Spent, TextLog, measure
from multispin.bench.profile import load_draft_model
from multispin.bench.verification import fill
from multispin.core.cost import CostEngine, Costs, RecordEngine, parse_costs
from multispin.core.drafter import Sampler
from multispin.core.engine import Batch, Engine, Outcome, Work, emptied
from multispin.core.replay import ReplayDrafter
from multispin.errors import BadInput
from multispin.lm.base import LanguageModel, Rows
from multispin.lm.prefix import num_common
from multispin.lm.record import Record, RecordedText, read_record
from multispin.net.drafting import DrafterOptions
from multispin.net.loading import TargetOptions, load_target
from multispin.types import SamplingParams, TokenIds

TELL_PASSES = 4
MAX_ROWS = 64  # of one pass over a prompt


class Colocate(msgspec.Struct, frozen=True, tag=True):
    """Write texts of a record, so many at a time, for so many seconds."""

    record: str
    num_texts: int
    draft_length: int
    seconds: float
    target: TargetOptions
    draft: DrafterOptions | None = None
    costs: tuple[str, str] | None = None  # files: of the target, of the drafter; then no draft


@dataclass
class Text:
    """One being written."""

    seq: int
    ids: TokenIds  # [prompt + max_tokens]
    num_prompt: int
    length: int  # so many of them are there
    log: TextLog

    @property
    def num_left(self) -> int:
        return len(self.ids) - self.length


class BatchDrafter(Protocol):
    def draft(self, texts: Sequence[Text], lengths: Sequence[int]) -> list[TokenIds]:
        """Continuations of up to these lengths."""
        ...

    def free(self, seq: int) -> None: ...


def colocate(job: Colocate, tell: Tell) -> Measured:
    record = read_record(job.record, "--record")
    if job.costs is not None:
        target, drafter_costs = (read_costs(file) for file in job.costs)
        hours = VirtualClock()
        engine = CostEngine(
            RecordEngine(
                record,
                num_sequences=job.num_texts,
                context_length=job.target.context_length,
                max_rows=job.target.max_rows,
            ),
            target,
            job.target.target,
            clock=hours.now,
            sleep=hours.sleep,
        )
        cheap = CostDrafter(record, drafter_costs, hours)
        return write(engine, cheap, record, job, tell, hours.now)
    assert job.draft is not None
    loaded = load_target(job.target)
    drafter = ModelBatch(load_draft_model(job.draft, loaded))
    return write(loaded, drafter, record, job, tell, time.monotonic)


def read_costs(file: str) -> Costs:
    try:
        return parse_costs(Path(file).read_text("utf-8"), file)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput("--drafter-cost", file, f"cannot be read: {error}") from None


def write(
    engine: Engine | CostEngine,
    drafter: BatchDrafter,
    record: Record,
    job: Colocate,
    tell: Tell,
    clock: Callable[[], float],
) -> Measured:
    """Draft, verify, commit, and again; measuring begins when every text has its first token."""
    upcoming = _texts(record)
    texts = [_begin(engine, drafter, seq, next(upcoming), clock) for seq in range(job.num_texts)]
    logs = [text.log for text in texts]
    begin, num_passes, spent = clock(), 0, Spent()
    while (now := clock()) < begin + job.seconds:
        if num_passes % TELL_PASSES == 0:
            tell(Wrote(spent.num_tokens, (now - begin) / job.seconds))
        for index, text in enumerate(texts):
            if text.num_left == 0:
                texts[index] = _begin(engine, drafter, text.seq, next(upcoming), clock)
                logs.append(texts[index].log)
        num_tokens = _round(engine, drafter, texts, job.draft_length, clock)
        num_passes += 1
        if num_passes == 1:
            begin = clock()
        else:
            spent = Spent(spent.num_tokens + num_tokens, spent.num_verifications + len(texts), 0)
    tell(Wrote(spent.num_tokens, 1.0))
    return measure(logs, begin, now, spent)


def _round(
    engine: Engine | CostEngine,
    drafter: BatchDrafter,
    texts: Sequence[Text],
    draft_length: int,
    clock: Callable[[], float],
) -> int:
    drafts = drafter.draft(texts, [min(draft_length, text.num_left - 1) for text in texts])
    works = [_work(text, draft) for text, draft in zip(texts, drafts, strict=True)]
    outcomes = engine.step(Batch(works)).outcomes
    now = clock()
    return sum(
        _commit(text, draft, outcome, now)
        for text, draft, outcome in zip(texts, drafts, outcomes, strict=True)
    )


def _commit(text: Text, draft: TokenIds, outcome: Outcome, now: float) -> int:
    at = text.length + outcome.num_accepted
    text.ids[text.length : at] = draft[: outcome.num_accepted]
    text.ids[at] = outcome.token
    text.length = at + 1
    text.log.arrivals.append((now, outcome.num_accepted + 1))
    return outcome.num_accepted + 1


def _texts(record: Record) -> Iterator[RecordedText]:
    while True:
        yield from record.texts


def _begin(
    engine: Engine | CostEngine,
    drafter: BatchDrafter,
    seq: int,
    text: RecordedText,
    clock: Callable[[], float],
) -> Text:
    """Read the prompt, but for its last token, which is the first row of the first pass."""
    log = TextLog(clock())
    prompt = np.frombuffer(text.prompt_ids, np.dtype("<i4"))
    ids = np.zeros(len(prompt) + len(text.path) // 4, np.dtype("<i4"))
    ids[: len(prompt)] = prompt
    drafter.free(seq)
    engine.step(Batch([], [emptied(seq)]))
    fill(engine, seq, prompt[:-1])
    return Text(seq, ids, len(prompt), len(prompt), log)


def _work(text: Text, draft: TokenIds) -> Work:
    newest = text.ids[text.length - 1 : text.length]
    return Work(
        seq=text.seq,
        start=text.length - 1,
        tokens=np.concatenate([newest, draft]).astype("<i4").tobytes(),
        num_draft=len(draft),
        samples=True,
        num_prompt=text.num_prompt,
        params=SamplingParams(),
        rule="greedy",
        seed=0,
    )


class ModelBatch:
    """A model that drafts for several texts in step."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._cached = [np.empty(0, np.int32)] * model.num_sequences

    def free(self, seq: int) -> None:
        self._model.free(seq)
        self._cached[seq] = np.empty(0, np.int32)

    def draft(self, texts: Sequence[Text], lengths: Sequence[int]) -> list[TokenIds]:
        drafts: list[list[int]] = [[] for _ in texts]
        for step in range(max(lengths, default=0)):
            rows = []
            for index, (text, length) in enumerate(zip(texts, lengths, strict=True)):
                if step < length:
                    written = np.append(text.ids[: text.length], drafts[index]).astype(np.int32)
                    rows.append((index, text.seq, self._catch_up(text.seq, written), written))
            for (index, *_), logits in zip(rows, self._read(rows), strict=True):
                drafts[index].append(int(logits.argmax()))
        return [np.array(draft, np.int32) for draft in drafts]

    def _catch_up(self, seq: int, written: TokenIds) -> int:
        """Forget what was rejected, read a new prompt; how many tokens are cached then."""
        cached = self._cached[seq]
        common = num_common(cached, written[:-1])
        if common < len(cached):
            self._model.truncate(seq, common)
        while len(written) - common > MAX_ROWS // self._model.num_sequences + 1:
            end = min(common + MAX_ROWS, len(written) - 1)
            self._model.forward(_rows([(seq, common, written[:end])], wants_logits=False))
            common = end
        return common

    def _read(self, rows: list[tuple[int, int, int, TokenIds]]) -> np.ndarray:
        """Feed what is not cached; the logits behind each text."""
        for _, seq, _, written in rows:
            self._cached[seq] = written
        return self._model.forward(_rows([row[1:] for row in rows], wants_logits=True))


def _rows(feeds: list[tuple[int, int, TokenIds]], *, wants_logits: bool) -> Rows:
    """Of sequences that hold so many of these tokens, the rest; logits of each last one."""
    nums = [len(tokens) - start for _, start, tokens in feeds]
    wants = np.zeros(sum(nums), np.bool_)
    wants[np.cumsum(nums) - 1] = wants_logits
    return Rows(
        np.repeat([seq for seq, _, _ in feeds], nums).astype(np.int32),
        np.concatenate([np.arange(start, len(tokens)) for _, start, tokens in feeds]).astype(
            np.int32
        ),
        np.concatenate([tokens[start:] for _, start, tokens in feeds]).astype(np.int32),
        wants,
    )


class VirtualClock:
    """Time that passes by being slept."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


class CostDrafter:
    """Recorded proposals, and the time that a drafter's passes would have taken."""

    def __init__(self, record: Record, costs: Costs, clock: VirtualClock) -> None:
        self._replay = ReplayDrafter(record)
        self._costs = costs
        self._clock = clock
        self._unread = set[int]()

    def free(self, seq: int) -> None:
        self._unread.add(seq)

    def draft(self, texts: Sequence[Text], lengths: Sequence[int]) -> list[TokenIds]:
        for text in texts:
            if text.seq in self._unread:
                self._clock.sleep(self._costs.pass_s(text.num_prompt, 1))
        self._unread.clear()
        for step in range(max(lengths, default=0)):
            num_rows = sum(step < length for length in lengths)
            self._clock.sleep(self._costs.pass_s(num_rows, num_rows))
        return [
            self._replay.draft(
                text.seq,
                text.ids[: text.length],
                length,
                Sampler(text.num_prompt, SamplingParams(), "greedy", 0),
            ).ids
            for text, length in zip(texts, lengths, strict=True)
        ]
