"""A target whose passes take a stated time: what the rest of a server costs shows beside it."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable

import msgspec
import numpy as np

from multispin.core.engine import Batch, Engine, EngineInfo, Outcome, StepResult, Work
from multispin.core.replay import Paths, follow
from multispin.errors import BadInput
from multispin.lm.record import Record
from multispin.types import TokenIds

_OFF_THE_RECORD = (
    "the record does not say how this text goes on: it holds texts at temperature 0 without "
    "penalties, of at most so many tokens as were recorded"
)


class Costs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ``[cost]`` table: seconds of a pass of R rows of K sequences,

        fixed_s + per_sequence_s K + per_row_s max(0, R - free_rows),

    or, where ``rows`` and ``seconds`` are given, linear between them, the first below them, the
    last slope above, and per_sequence_s K. ``record`` is the file of the texts.
    """

    fixed_s: float = 0.0
    per_sequence_s: float = 0.0
    per_row_s: float = 0.0
    free_rows: int = 0
    rows: list[int] = []
    seconds: list[float] = []
    record: str | None = None

    def pass_s(self, num_rows: int, num_sequences: int) -> float:
        per_sequence_s = self.per_sequence_s * num_sequences
        if not self.rows:
            return (
                self.fixed_s + per_sequence_s + self.per_row_s * max(0, num_rows - self.free_rows)
            )
        beyond = num_rows - self.rows[-1]
        if beyond > 0 and len(self.rows) > 1:
            slope = (self.seconds[-1] - self.seconds[-2]) / (self.rows[-1] - self.rows[-2])
            return self.seconds[-1] + slope * beyond + per_sequence_s
        return float(np.interp(num_rows, self.rows, self.seconds)) + per_sequence_s


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    cost: Costs


def parse_costs(text: str, source: str) -> Costs:
    """A TOML with one table, ``[cost]``. Raises BadInput that names the file, field and value."""
    try:
        costs = msgspec.convert(tomllib.loads(text), _File).cost
    except tomllib.TOMLDecodeError as error:
        raise BadInput(source, "(not TOML)", str(error)) from None
    except msgspec.ValidationError as error:
        raise BadInput(source, "[cost]", f"{error}; docs/measuring.md lists the keys") from None
    for field in ("fixed_s", "per_sequence_s", "per_row_s", "free_rows"):
        value = getattr(costs, field)
        if not 0 <= value < float("inf"):
            raise BadInput(f"{source}: cost.{field}", value, "must be 0 or more")
    if costs.rows or costs.seconds:
        _check_table(costs, source)
    return costs


def _check_table(costs: Costs, source: str) -> None:
    rows, seconds = np.array(costs.rows), np.array(costs.seconds)
    if len(rows) != len(seconds) or (np.diff(rows, prepend=0) <= 0).any():
        remedy = "must rise from 1 or more, with as many seconds"
        raise BadInput(f"{source}: cost.rows", costs.rows, remedy)
    if not (np.isfinite(seconds) & (seconds >= 0)).all():
        raise BadInput(f"{source}: cost.seconds", costs.seconds, "must be 0 or more")
    if seconds[-2:].tolist() != sorted(seconds[-2:]):
        remedy = "must not fall at the end: more rows would take less than no time"
        raise BadInput(f"{source}: cost.seconds", costs.seconds, remedy)
    if costs.fixed_s or costs.per_row_s or costs.free_rows:
        remedy = "state either these or fixed_s, per_row_s and free_rows"
        raise BadInput(f"{source}: cost.rows", costs.rows, remedy)


class RecordEngine:
    """A target that is a record: drafts are compared with its paths, there are no logits."""

    def __init__(
        self, record: Record, *, num_sequences: int, context_length: int, max_rows: int
    ) -> None:
        self.info = EngineInfo(
            target=record.target,
            fingerprint=record.fingerprint,
            pieces=record.pieces,
            offsets=record.offsets,
            end_ids=record.end_ids,
            bos_id=record.bos_id,
            chat_template=record.chat_template,
            special_pieces=record.special_pieces,
            num_sequences=num_sequences,
            context_length=context_length,
            max_rows=max_rows,
            reproducible=True,
            has_logits=False,
        )
        self._prompts = {text.prompt: text.prompt_ids for text in record.texts}
        self._end_tokens = {token.to_bytes(4, "little") for token in record.end_ids}
        self._paths = Paths(record, num_sequences)

    def tokenize(self, text: str, parse_special: bool) -> TokenIds:
        """Of the record's prompts only; as every tokenizer, without the BOS of a plain text."""
        if text not in self._prompts:
            remedy = "is not in the target's record: take one of its prompts, or record this one"
            raise BadInput("text", repr(text[:40]), remedy)
        ids = np.frombuffer(self._prompts[text], np.dtype("<i4"))
        has_bos = self.info.bos_id is not None and not parse_special
        return ids[1:] if has_bos else ids

    def step(self, batch: Batch) -> StepResult:
        for copy in batch.copies:
            self._paths.copy(copy.source, copy.target, copy.length)
        return StepResult([self._judge(work) for work in batch.works], 0.0)

    def _judge(self, work: Work) -> Outcome:
        self._paths.feed(work.seq, work.start, work.tokens)
        if not work.samples:
            return Outcome(0, 0)
        num_kept = work.start + work.num_rows - work.num_draft
        ahead = self._paths.ahead(work.seq, work.num_prompt, num_kept, work.params)
        draft = work.tokens[len(work.tokens) - 4 * work.num_draft :]
        num_accepted, token = follow(draft, ahead)
        if token is None and ahead[-4:] in self._end_tokens:
            token = 0  # whatever it is, it stands behind the end of the text
        if token is None:
            return Outcome(0, 0, _OFF_THE_RECORD)
        return Outcome(num_accepted, token)


class CostEngine:
    """An engine whose steps end when the modelled pass would have, its own work included."""

    def __init__(
        self,
        engine: Engine | RecordEngine,
        costs: Costs,
        name: str,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.info = msgspec.structs.replace(engine.info, target=name)
        self.tokenize = engine.tokenize
        self._engine = engine
        self._costs = costs
        self._clock = clock
        self._sleep = sleep

    def step(self, batch: Batch) -> StepResult:
        began = self._clock()
        result = self._engine.step(batch)
        ends = began + self._costs.pass_s(batch.num_rows, len(batch.works))
        if batch.works and (left := ends - self._clock()) > 0:
            self._sleep(left)
        return msgspec.structs.replace(result, forward_s=self._clock() - began)
