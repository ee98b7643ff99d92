"""The edge server without its network: sessions in, batches out, verdicts back.

    observe (open, draft, close) → plan (next_batch) → verify (the engine) → commit (complete)

Synchronous; the clock and the source of secrets are passed in. A shell delivers the frames and runs
the engine. The engine waits between ``complete`` and ``next_batch``; what has time until a pass
runs is in ``learn``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from multispin.core.admission import unpack_proposals
from multispin.core.batch import form_batch, only_verifies, round_opens_in
from multispin.core.cells import Cells
from multispin.core.controller import SessionKey
from multispin.core.engine import Batch, EngineInfo, Outcome, StepResult, Work
from multispin.core.limits import ServerLimits
from multispin.core.load import rows_waiting
from multispin.core.placement import Placement
from multispin.core.reception import Reception
from multispin.core.session import Session
from multispin.core.tenant import LOCAL, Tenant
from multispin.errors import BadInput, MultispinError, PeerError
from multispin.types import TokenIds
from multispin.wire import frames
from multispin.wire.frames import Close, Draft, Error, Open, Redirect, Resume, Verdict
from multispin.wire.payload import Payload, payload

MAX_ENDED = 1024  # finished sessions whose late drafts are known for what they are
ABANDONED_S = 60.0  # a device that is there and owes a draft for so long has given it up
MAX_CRASHES = 3  # a session that was in this many crashed batches is ended


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
    num_verdicts: int = 0
    verdict_s: float = 0.0  # from a draft's arrival, or the last verdict, to the verdict: their sum


class ServerCore:
    """All sessions of one engine.

    ``token_bytes`` makes secrets of so many random bytes; without it no session can be resumed.
    """

    def __init__(
        self,
        info: EngineInfo,
        limits: ServerLimits,
        clock: Callable[[], float],
        token_bytes: Callable[[int], bytes] = lambda _: b"",
    ) -> None:
        self.info = info
        self.limits = limits
        self.counters = Counters()
        self.vocabulary = info.vocabulary()
        self._num_ids = self.vocabulary.size
        self.id_bits = frames.id_bits(self._num_ids)
        self.controller = Cells(
            limits.control,
            payload("coupled", self._num_ids),
            limits.max_draft_length,
            clock,
            limits.batch.mode,
        )
        for timed in info.passes:
            self.controller.passed(timed.num_rows, timed.num_sequences, timed.seconds)
        # Of who shows texts: what was committed, with the verdict that says so.
        self.tell_commit: Callable[[SessionKey, Verdict, TokenIds], None] | None = None
        self._clock = clock
        self._reception = Reception(
            info, self.vocabulary, limits, self.controller, clock, token_bytes
        )
        self._sessions = self._reception.sessions
        # Their devices may have sent another draft before they knew; oldest first.
        self._ended: dict[SessionKey, None] = {}
        self._placement = Placement(info.num_sequences, limits.share_prefixes)
        self._running: list[tuple[Session, Work]] = []
        self._chosen_at = -math.inf  # when the running pass was
        # Of the last pass, until it is learned from.
        self._passed: Passed | None = None
        self._answered: list[Session] = []

    @property
    def num_sessions(self) -> int:
        return len(self._sessions)

    @property
    def open_sessions(self) -> list[SessionKey]:
        return [key for key, session in self._sessions.items() if not session.closed]

    @property
    def num_rows_waiting(self) -> int:
        """That are ready for a pass and are not in the one that runs, or ran last."""
        return rows_waiting(self._sessions.values(), self._running, self._chosen_at)

    @property
    def num_detached(self) -> int:
        """Sessions that lost their link and can still be resumed."""
        return self._reception.num_detached

    @property
    def draining(self) -> bool:
        return self._reception.gate.draining

    def refuse_new(self, retry_after_s: float) -> None:
        """From now on no session begins or is resumed: the server is being stopped."""
        self._reception.gate.refuse_new(retry_after_s)

    # --- observe -------------------------------------------------------------------------------

    def connect(
        self,
        link: Hashable,
        spectral_efficiency: float,
        drafts: Payload | None = None,
        tenant: Tenant = LOCAL,
        cell: str = "",
    ) -> None:
        """A device said hello; it is one of the tenant's, and of the radio cell."""
        if not (math.isfinite(spectral_efficiency) and 0 < spectral_efficiency <= 100):
            raise BadInput("spectral_efficiency", spectral_efficiency, "must lie in (0, 100]")
        self.controller.connect(link, spectral_efficiency, drafts, cell)
        self._reception.gate.connect(link, tenant)

    def check_open(self, link: Hashable, message: Open) -> None:
        """Raise for what is wrong with a message, as far as that shows without token ids."""
        self._reception.check_open(link, message)

    def open(self, link: Hashable, message: Open, prompt: TokenIds) -> list[Outgoing]:
        """Begin a session. ``prompt`` is the message's prompt in the target's token ids."""
        key = SessionKey(link, message.session)
        try:
            opened = self._reception.open(key, message, prompt)
        except MultispinError as error:
            return [self._error(link, message.session, error)]
        self._ended.pop(key, None)
        return [(link, opened)]

    def resume(self, link: Hashable, message: Resume) -> list[Outgoing]:
        """Go on with a session whose link is lost, whether or not the server knows that yet."""
        key = SessionKey(link, message.session)
        try:
            self._reception.check_free(key)
            self._take_over(message.token, self._reception.gate.tenant(link))
            opened = self._reception.resume(key, message)
        except MultispinError as error:
            return [self._error(link, message.session, error)]
        self._ended.pop(key, None)
        return [(link, opened)]

    def _take_over(self, token: bytes, tenant: Tenant) -> None:
        """From a link that is half dead."""
        for session in [s for s in self._sessions.values() if not s.closed]:
            if session.resume and session.resume == token and session.tenant.name == tenant.name:
                self._detach(session)
                self._remember(session.key)  # its drafts may still arrive there

    def _detach(self, session: Session) -> None:
        self._reception.keep(session)
        self._end(session)

    def draft(self, link: Hashable, message: Draft) -> list[Outgoing]:
        """Take a draft; a repeated one is answered with the recorded verdict at once."""
        key = SessionKey(link, message.session)
        session = self._sessions.get(key)
        is_open = session is not None and not session.closed
        if not is_open and key in self._ended:
            self.counters.num_stale_drafts += 1
            return []
        if session is None or session.closed:
            error = PeerError(f"session = {message.session}: is not open", code="unknown_session")
            return [self._error(link, message.session, error)]
        try:
            session.check_size(message, self.id_bits)
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

    def hand_over(self, key: SessionKey, server: str) -> list[Outgoing]:
        """The session goes on elsewhere, which ``server`` knows, with what is committed so far."""
        session = self._sessions.get(key)
        if session is None or session.closed:
            return []
        self._end(session)
        self._remember(key)  # its drafts may be on the way
        return [(key.link, Redirect(key.session, server))]

    def drop(self, link: Hashable) -> None:
        """The link is gone: its sessions are kept for a while, in case their device comes back."""
        for session in [s for s in self._sessions.values() if s.key.link == link]:
            self._detach(session)
        self.controller.drop(link)
        self._ended = {key: None for key in self._ended if key.link != link}
        self._reception.drop(link)

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
        self._chosen_at = now
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
                out.append(self._end_with(session, failure))
            else:
                out.append(self._commit(session, outcome, work.num_draft, now))
        return out

    def _commit(self, session: Session, outcome: Outcome, num_draft: int, now: float) -> Outgoing:
        key, counters = session.key, self.counters
        if self.limits.control.policy is not None:
            session.allowed = self.controller.grant(key)
        counters.num_verdicts += 1
        counters.verdict_s += now - session.waiting_since
        verdict = session.commit(outcome, num_draft, now)
        if self.tell_commit is not None:
            self.tell_commit(key, verdict, session.tokens(verdict.start, session.length))
        counters.num_committed_tokens += verdict.num_committed
        if num_draft:
            counters.num_drafts += 1
            counters.num_draft_tokens += num_draft
            counters.num_accepted_tokens += verdict.num_accepted
        if verdict.finish:
            self._learn(session, is_answered=True)
            self._end(session)
            self._remember(key)
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
                out.append(self._end_with(session, error))
        return out

    def end_abandoned(self) -> list[Outgoing]:
        """End the sessions whose device, though its link is there, owes a draft for too long."""
        since = self._clock() - ABANDONED_S
        owing = [s for s in self._sessions.values() if not (s.ready or s.closed)]
        error = PeerError(f"no draft came for {ABANDONED_S:g} s", code="abandoned")
        return [self._end_with(s, error) for s in owing if s.waiting_since < since]

    def _end_with(self, session: Session, error: MultispinError) -> Outgoing:
        """What is none of its device's doing: drafts that are on the way are no offence."""
        self._end(session)
        self._remember(session.key)
        return self._error(session.key.link, session.key.session, error)

    def _remember(self, key: SessionKey) -> None:
        """The session has ended, and its device may not know yet."""
        self._ended[key] = None
        if len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]

    def _end(self, session: Session) -> None:
        if not session.closed:
            self._reception.gate.ended(self._clock() - session.began)
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
        return link, Error.of(session, error)
