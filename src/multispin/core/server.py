"""The edge server without its network: sessions in, batches out, verdicts back.

    observe (open, draft, close) → plan (next_batch) → verify (the engine) → commit (complete)

Synchronous; the clock is passed in. A shell delivers the frames and runs the engine. The engine
waits between ``complete`` and ``next_batch``; what has time until a pass runs is in ``learn``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from multispin.core.admission import check_open, check_prompt, unpack_proposals
from multispin.core.batch import BatchLimits, form_batch, only_verifies, round_opens_in
from multispin.core.confidence import Calibration
from multispin.core.controller import Controller, ControlSettings, SessionKey
from multispin.core.engine import Batch, EngineInfo, Outcome, StepResult, Work
from multispin.core.placement import Placement
from multispin.core.session import Session
from multispin.errors import BadInput, MultispinError, PeerError
from multispin.types import TokenIds
from multispin.wire import frames
from multispin.wire.frames import Close, Draft, Error, Open, Opened
from multispin.wire.payload import Payload, payload

MAX_ENDED = 1024  # finished sessions whose late drafts are known for what they are
MAX_CRASHES = 3  # a session that was in this many crashed batches is ended


@dataclass(frozen=True)
class ServerLimits:
    max_draft_length: int = 32
    max_waiting: int = 256  # sessions queued for a free sequence
    batch: BatchLimits = field(default_factory=BatchLimits)
    control: ControlSettings = field(default_factory=ControlSettings)


class Passed(NamedTuple):
    """A pass that is over."""

    works: list[Work]
    result: StepResult


Outgoing: TypeAlias = tuple[Hashable, frames.FromServer]  # the frame is for the device of the link


@dataclass
class Counters:
    """Running totals, for metrics and the dashboard."""

    num_batches: int = 0
    num_rows: int = 0
    forward_s: float = 0.0  # time in the model
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_committed_tokens: int = 0
    num_stale_drafts: int = 0
    num_errors: int = 0
    num_replay_differences: int = 0  # judgements of a record that the logits do not share


class ServerCore:
    """All sessions of one engine."""

    def __init__(self, info: EngineInfo, limits: ServerLimits, clock: Callable[[], float]) -> None:
        self.info = info
        self.limits = limits
        self.counters = Counters()
        self.vocabulary = info.vocabulary()
        self._num_ids = self.vocabulary.size
        self.id_bits = frames.id_bits(self._num_ids)
        self.controller = Controller(
            limits.control,
            payload("coupled", self._num_ids),
            limits.max_draft_length,
            clock,
            limits.batch.mode,
        )
        for timed in info.passes:
            self.controller.passed(timed.num_rows, timed.num_sequences, timed.seconds)
        self._clock = clock
        self._sessions: dict[SessionKey, Session] = {}
        self._calibrations: dict[Hashable, Calibration] = {}
        # Their devices may have sent another draft before they knew; oldest first.
        self._ended: dict[SessionKey, None] = {}
        self._placement = Placement(info.num_sequences)
        self._running: list[tuple[Session, Work]] = []
        # Of the last pass, until it is learned from.
        self._passed: Passed | None = None
        self._answered: list[Session] = []

    @property
    def num_sessions(self) -> int:
        return len(self._sessions)

    # --- observe -------------------------------------------------------------------------------

    def connect(
        self, link: Hashable, spectral_efficiency: float, drafts: Payload | None = None
    ) -> None:
        """A device said hello."""
        if not (math.isfinite(spectral_efficiency) and 0 < spectral_efficiency <= 100):
            raise BadInput("spectral_efficiency", spectral_efficiency, "must lie in (0, 100]")
        self.controller.connect(link, spectral_efficiency, drafts)

    def open(self, link: Hashable, message: Open, prompt: TokenIds) -> list[Outgoing]:
        """Begin a session. ``prompt`` is the message's prompt in the target's token ids."""
        key = SessionKey(link, message.session)
        try:
            self.check_open(link, message)
            check_prompt(prompt, self.info.context_length)
        except MultispinError as error:
            return [self._error(link, message.session, error)]
        room = self.info.context_length - len(prompt)
        self.controller.join(key, message.draft_length)
        self.controller.plan()
        allowed = self.controller.grant(key)
        session = Session(
            key,
            message,
            prompt,
            min(message.max_tokens, room),
            self.vocabulary,
            allowed,
            self._calibrations.setdefault(link, Calibration()),
            self._clock(),
            is_window=self.limits.batch.mode == "window",
        )
        self._sessions[key] = session
        self._ended.pop(key, None)
        packed = frames.pack_ids(prompt, self.id_bits)
        rate = allowed.upload_bits_per_s
        return [(link, Opened(message.session, packed, session.grant, rate))]

    def check_open(self, link: Hashable, message: Open) -> None:
        """Raise for what is wrong with a message, as far as that shows without token ids."""
        if SessionKey(link, message.session) in self._sessions:
            raise PeerError(f"session = {message.session}: is open already", code="out_of_order")
        max_length = self.limits.max_draft_length
        check_open(message, self.info, self.vocabulary.size, max_length)
        num_waiting = len(self._sessions) - self.info.num_sequences
        if num_waiting >= self.limits.max_waiting:
            raise PeerError(
                f"{num_waiting} sessions are waiting already: try again later, or serve with a "
                "larger --max-sessions",
                code="overloaded",
            )

    def draft(self, link: Hashable, message: Draft) -> list[Outgoing]:
        """Take a draft; a repeated one is answered with the recorded verdict at once."""
        key = SessionKey(link, message.session)
        session = self._sessions.get(key)
        if session is None and key in self._ended:
            self.counters.num_stale_drafts += 1
            return []
        if session is None or session.closed:
            error = PeerError(f"session = {message.session}: is not open", code="unknown_session")
            return [self._error(link, message.session, error)]
        try:
            ids, levels = frames.unpack_tokens(message.tokens, self.id_bits, self._num_ids)
            if (repeated := session.repeated(message, len(ids))) is not None:
                return [(link, repeated)]
            if session.is_stale(message):
                self.counters.num_stale_drafts += 1
                return []
            proposals = []
            if session.sends_proposals:
                proposals = unpack_proposals(message, ids, self.id_bits, self._num_ids)
            session.take(message, ids, levels, proposals)
        except PeerError as error:
            self._end(session)
            return [self._error(link, message.session, error)]
        session.num_heard += len(ids)
        session.drafting += message.drafting
        if session.turn_since is not None:
            self._heard(session, self._clock() - session.turn_since)
            session.turn_since = None
        self._learn(session)
        if not session.is_window:
            session.waiting_since = self._clock()
        return []

    def _heard(self, session: Session, turnaround_s: float | None) -> None:
        """How fast the device drafts, and answers a verdict."""
        drafting_s = 1e-4 * session.drafting
        self.controller.drafted(session.key, session.num_heard, drafting_s, turnaround_s)
        session.num_heard = session.drafting = 0

    def _learn(self, session: Session, *, is_answered: bool = False) -> None:
        """What the session's drafted tokens were worth."""
        if is_answered:
            self.controller.answered(session.key)
            if session.num_heard:
                self._heard(session, None)
        if session.compared:
            for levels, num_same in session.compared:
                session.calibration.observe(levels, num_same)
                self.controller.compared(session.key, len(levels), num_same)
            session.compared.clear()

    def close(self, link: Hashable, message: Close) -> list[Outgoing]:
        session = self._sessions.get(SessionKey(link, message.session))
        if session is not None:
            self._end(session)
        return []

    def drop(self, link: Hashable) -> None:
        """The link is gone, and with it its sessions."""
        for key in [key for key in self._sessions if key.link == link]:
            self._end(self._sessions[key])
        self.controller.drop(link)
        self._calibrations.pop(link, None)

    # --- plan ----------------------------------------------------------------------------------

    def next_batch(self) -> Batch | None:
        """The next forward pass, or None when nothing is ready."""
        assert not self._running, "one batch at a time"
        if len(self._placement.sessions) < len(self._sessions):
            self._placement.place(self._sessions.values(), self._clock())
        self._running = self._choose(self._placement.sessions)
        if not self._running:
            return None
        return Batch([work for _, work in self._running], self._placement.take_copies())

    def wait_s(self) -> float | None:
        """How long a shell may sleep when next_batch had nothing and no frame comes."""
        now = self._clock()
        waits = []
        if any(s.seq is None and s.needs_place for s in self._sessions.values()):
            waits = self._placement.frees_in(now)
        past_prompt = [s for s in self._placement.sessions if s.num_uncached == 1]
        if self.limits.batch.mode == "rounds" and any(s.ready for s in past_prompt):
            waits.append(round_opens_in(past_prompt, self.limits.batch, now))
        return max(min(waits), 0.0) if waits else None

    def _choose(self, sessions: Collection[Session]) -> list[tuple[Session, Work]]:
        """Sessions that were in a crash go alone, until a pass with them has gone well."""
        now, limits = self._clock(), self.limits.batch
        pass_s = self.controller.pass_seconds(limits.max_rows)
        suspects = [session for session in sessions if session.num_crashes]
        for suspect in sorted(suspects, key=lambda s: s.num_crashes):
            if chosen := form_batch([suspect], limits, pass_s, now):
                return chosen
        if suspects:
            sessions = [session for session in sessions if not session.num_crashes]
        return form_batch(sessions, limits, pass_s, now)

    # --- commit --------------------------------------------------------------------------------

    def complete(self, result: StepResult) -> list[Outgoing]:
        """Apply what the engine answered to the batch that is running."""
        self.learn()
        out: list[Outgoing] = []
        now = self._clock()
        running, self._running = self._running, []
        self._passed = Passed([work for _, work in running], result)
        for (session, work), outcome in zip(running, result.outcomes, strict=True):
            session.num_crashes = 0
            if session.closed:
                self._release(session)
            elif not work.samples:
                session.num_cached = work.start + work.num_rows
            elif outcome.failure is not None:
                failure = MultispinError(outcome.failure, code="engine_failed")
                out.append(self._error(session.key.link, session.key.session, failure))
                self._end(session)
            else:
                out.append(self._commit(session, outcome, work.num_draft, now))
        return out

    def _commit(self, session: Session, outcome: Outcome, num_draft: int, now: float) -> Outgoing:
        key, counters = session.key, self.counters
        if self.limits.control.policy is not None:
            session.allowed = self.controller.grant(key)
        verdict = session.commit(outcome, num_draft, now)
        counters.num_committed_tokens += verdict.num_committed
        if num_draft:
            counters.num_drafts += 1
            counters.num_draft_tokens += num_draft
            counters.num_accepted_tokens += verdict.num_accepted
        if verdict.finish:
            self._learn(session, is_answered=True)
            self._end(session)
            self._ended[key] = None
            if len(self._ended) > MAX_ENDED:
                del self._ended[next(iter(self._ended))]
        else:
            self._answered.append(session)
        return key.link, verdict

    def learn(self) -> None:
        """Make of the last verdicts what can be made of them: estimates, and new plans.

        A shell calls this when the next pass has begun; if it does not, `complete` will.
        """
        if self._passed is None:
            return
        works, result = self._passed
        self._passed = None
        num_rows = sum(work.num_rows for work in works)
        self.counters.num_batches += 1
        self.counters.num_rows += num_rows
        self.counters.forward_s += result.forward_s
        self.counters.num_replay_differences += result.num_replay_differences
        if only_verifies(works):
            self.controller.passed(num_rows, len(works), result.forward_s)
            self.controller.pass_seconds(self.limits.batch.max_rows)  # not when it is asked for
        for session in self._answered:
            if not session.closed:
                self._learn(session, is_answered=True)
        self._answered = []
        self.controller.plan()

    def engine_lost(self) -> list[Outgoing]:
        """The engine died in the running batch, and every cache with it: feed all anew.

        A session that was there at MAX_CRASHES crashes in a row is taken for their cause.
        """
        out = []
        running, self._running = self._running, []
        self._placement.lost()
        for session, _ in running:
            session.num_crashes += 1
            if session.closed:
                self._release(session)
            elif session.num_crashes >= MAX_CRASHES:
                error = MultispinError(
                    f"the engine crashed {MAX_CRASHES} times on this session", code="engine_failed"
                )
                out.append(self._error(session.key.link, session.key.session, error))
                self._end(session)
        return out

    def _end(self, session: Session) -> None:
        session.closed = True
        if all(session is not other for other, _ in self._running):
            self._release(session)

    def _release(self, session: Session) -> None:
        self._learn(session)
        del self._sessions[session.key]
        self.controller.leave(session.key)
        if session.seq is not None:
            self._placement.evict(session)

    def _error(self, link: Hashable, session: int | None, error: MultispinError) -> Outgoing:
        self.counters.num_errors += 1
        return link, Error(session, error.code, str(error))
