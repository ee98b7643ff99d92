"""The edge server without its network: sessions in, batches out, verdicts back.

    observe (open, draft, close) → plan (next_batch) → verify (the engine) → commit (complete)

Synchronous; the clock is passed in. A shell delivers the frames and runs the engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

from multispin.acceptance import PROPOSAL_TOTAL
from multispin.core.batch import BatchLimits, form_batch, round_opens_in
from multispin.core.caches import MIN_SHARED, Caches, Place
from multispin.core.confidence import Calibration
from multispin.core.controller import Controller, ControlSettings, SessionKey
from multispin.core.engine import Batch, EngineInfo, StepResult, Work
from multispin.core.session import Session
from multispin.errors import BadInput, MultispinError, PeerError
from multispin.lm.prefix import num_common
from multispin.types import TokenIds
from multispin.wire import frames
from multispin.wire.frames import ChatMessage, Close, Draft, Error, Open, Opened, Verdict

MAX_PROPOSAL_BYTES = 1 << 13  # of the ids, and of the counts, of one proposal
MAX_STOPS = 16
MAX_STOP_LENGTH = 1000
# Longer texts cannot fit: few tokens of any vocabulary are longer than so many bytes.
MAX_BYTES_PER_TOKEN = 64
IDLE_S = 5.0  # a session that owes a draft for longer gives up its sequence to one that waits
MAX_ENDED = 1024  # finished sessions whose late drafts are known for what they are
MAX_CRASHES = 3  # a session that was in this many crashed batches is ended


@dataclass(frozen=True)
class ServerLimits:
    max_draft_length: int = 32
    max_waiting: int = 256  # sessions queued for a free sequence
    batch: BatchLimits = field(default_factory=BatchLimits)
    control: ControlSettings = field(default_factory=ControlSettings)


class Outgoing(NamedTuple):
    link: Hashable
    frame: frames.FromServer


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
        self.id_bits = frames.id_bits(self.vocabulary.size)
        self.controller = Controller(
            limits.control,
            self.id_bits + frames.LEVEL_BITS,
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
        self._caches = Caches(info.num_sequences)
        self._placed: dict[int, Session] = {}  # by sequence
        self._running: list[Session] = []
        self._works: list[Work] = []

    @property
    def num_sessions(self) -> int:
        return len(self._sessions)

    # --- observe -------------------------------------------------------------------------------

    def connect(self, link: Hashable, spectral_efficiency: float) -> None:
        """A device said hello."""
        if not (math.isfinite(spectral_efficiency) and 0 < spectral_efficiency <= 100):
            raise BadInput("spectral_efficiency", spectral_efficiency, "must lie in (0, 100]")
        self.controller.connect(link, spectral_efficiency)

    def open(self, link: Hashable, message: Open, prompt: TokenIds) -> list[Outgoing]:
        """Begin a session. ``prompt`` is the message's prompt in the target's token ids."""
        key = SessionKey(link, message.session)
        try:
            self.check_open(link, message)
            self._check_prompt(prompt)
        except MultispinError as error:
            return [self._error(link, message.session, error)]
        room = self.info.context_length - len(prompt)
        self.controller.join(key, message.draft_length)
        session = Session(
            key,
            message,
            prompt,
            min(message.max_tokens, room),
            self.vocabulary,
            self.controller.grant(key),
            self._calibrations.setdefault(link, Calibration()),
            self._clock(),
            is_window=self.limits.batch.mode == "window",
        )
        self._sessions[key] = session
        self._ended.pop(key, None)
        packed = frames.pack_ids(prompt, self.id_bits)
        rate = session.allowed.upload_bits_per_s
        return [Outgoing(link, Opened(message.session, packed, session.grant, rate))]

    def check_open(self, link: Hashable, message: Open) -> None:
        """Raise for what is wrong with a message, as far as that shows without token ids."""
        if SessionKey(link, message.session) in self._sessions:
            raise PeerError(f"session = {message.session}: is open already", code="out_of_order")
        self._check_size(message.prompt)
        message.params.validate()
        if message.rule == "greedy" and message.params.temperature > 0:
            raise BadInput("rule", "greedy", "needs temperature 0; above it coupled or rejection")
        if len(message.stop) > MAX_STOPS or any(len(s) > MAX_STOP_LENGTH for s in message.stop):
            raise BadInput(
                "stop",
                f"{len(message.stop)} sequences",
                f"at most {MAX_STOPS}, of {MAX_STOP_LENGTH} characters each",
            )
        if message.max_tokens < 1:
            raise BadInput("max_tokens", message.max_tokens, "must be at least 1")
        if not 0 <= message.seed < 2**63:
            raise BadInput("seed", message.seed, "must be an integer from 0 to 2^63 - 1")
        if not 0 <= message.draft_length <= self.limits.max_draft_length:
            raise BadInput(
                "draft_length",
                message.draft_length,
                f"this server allows 0 to {self.limits.max_draft_length}",
                code="draft_too_long",
            )
        for token in message.params.logit_bias:
            if not 0 <= token < self.vocabulary.size:
                raise BadInput("logit_bias", token, "is no token id of the target")
        num_waiting = len(self._sessions) - self.info.num_sequences
        if num_waiting >= self.limits.max_waiting:
            raise PeerError(
                f"{num_waiting} sessions are waiting already: try again later, or serve with a "
                "larger --max-sessions",
                code="overloaded",
            )

    def _check_size(self, prompt: str | list[ChatMessage]) -> None:
        """Tokenizing holds up everybody's batches: refuse what cannot fit before it is tried."""
        parts = [prompt] if isinstance(prompt, str) else [m.role + m.content for m in prompt]
        num_bytes = sum(len(part.encode(errors="replace")) for part in parts)
        most = MAX_BYTES_PER_TOKEN * self.info.context_length
        if num_bytes > most or len(parts) > self.info.context_length:
            raise BadInput(
                "prompt",
                f"{num_bytes} bytes in {len(parts)} messages",
                f"the context holds {self.info.context_length} tokens: shorten the prompt or serve "
                "with a larger --ctx-size",
                code="context_overflow",
            )

    def _check_prompt(self, prompt: TokenIds) -> None:
        if len(prompt) == 0:
            raise BadInput("prompt", "''", "must not be empty")
        if len(prompt) >= self.info.context_length:
            raise BadInput(
                "prompt",
                f"{len(prompt)} tokens",
                f"the context holds {self.info.context_length}, prompt and answer together: "
                "shorten the prompt or serve with a larger --ctx-size",
                code="context_overflow",
            )

    def draft(self, link: Hashable, message: Draft) -> list[Outgoing]:
        """Take a draft; a repeated one is answered with the recorded verdict at once."""
        key = SessionKey(link, message.session)
        session = self._sessions.get(key)
        if key in self._ended:
            self.counters.num_stale_drafts += 1
            return []
        if session is None or session.closed:
            error = PeerError(f"session = {message.session}: is not open", code="unknown_session")
            return [self._error(link, message.session, error)]
        try:
            ids, levels = frames.unpack_tokens(message.tokens, self.id_bits, self.vocabulary.size)
            if (repeated := session.repeated(message, len(ids))) is not None:
                return [Outgoing(link, repeated)]
            if session.is_stale(message):
                self.counters.num_stale_drafts += 1
                return []
            session.take(message, ids, levels, self._proposals(session, ids, message))
        except PeerError as error:
            self._end(session)
            return [self._error(link, message.session, error)]
        now = self._clock()
        turnaround_s = None if session.turn_since is None else now - session.turn_since
        self.controller.drafted(session.key, len(ids), message.drafting * 1e-4, turnaround_s)
        session.turn_since = None
        self._learn(session)
        if not session.is_window:
            session.waiting_since = now
        return []

    def _learn(self, session: Session) -> None:
        for compared in session.take_compared():
            self.controller.compared(session.key, compared.num_tokens, compared.num_same)

    def _proposals(
        self, session: Session, ids: TokenIds, message: Draft
    ) -> list[tuple[bytes, bytes]]:
        """Unpacked ids and counts of each proposal, checked against the draft."""
        if session.request.rule != "rejection" or session.request.params.temperature == 0:
            return []
        if len(message.proposals) != len(ids):
            raise PeerError(
                f"draft.proposals = {len(message.proposals)} for {len(ids)} tokens: the rule "
                "'rejection' needs one for each",
                code="bad_frame",
            )
        checked = []
        for token, (packed, counts) in zip(ids, message.proposals, strict=True):
            kept = frames.unpack_ids(
                packed[:MAX_PROPOSAL_BYTES], self.id_bits, self.vocabulary.size
            )
            if not frames.is_proposal(kept, counts) or token not in kept:
                raise PeerError(
                    "draft.proposals: ids must ascend and hold the drafted one, counts must "
                    f"sum to {PROPOSAL_TOTAL}",
                    code="bad_frame",
                )
            checked.append((kept.astype("<i4").tobytes(), counts))
        return checked

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
        self._place_sessions()
        chosen = self._choose([s for s in self._sessions.values() if s.seq is not None])
        if not chosen:
            return None
        self._running = [session for session, _ in chosen]
        self._works = [work for _, work in chosen]
        for session in self._running:
            session.busy = True
        return Batch(self._works, self._caches.take_copies())

    def _place_sessions(self) -> None:
        """Sequences for the sessions that need one, in the order in which they were opened."""
        for session in self._sessions.values():
            if session.seq is not None or not session.needs_place:
                continue
            sharing = self._sharing(session)
            if any(_leads(other, session) for other in sharing):
                continue
            place = self._assign(session, sharing)
            if place is None and (idle := self._longest_idle()) is not None:
                self._evict(idle)
                place = self._assign(session, self._sharing(session))
            if place is None:
                return
            session.seq, session.num_cached = place
            self._placed[place.seq] = session

    def _sharing(self, session: Session) -> list[Session]:
        """Those with a sequence whose texts begin like this one's."""
        seqs = self._caches.sharing(session.tokens(0, session.length))
        return [self._placed[seq] for seq in seqs if seq in self._placed]

    def _assign(self, session: Session, sharing: list[Session]) -> Place | None:
        cached = {s.seq: s.tokens(0, s.num_cached) for s in sharing if s.seq is not None}
        return self._caches.assign(session.tokens(0, session.length), cached)

    def _evict(self, session: Session) -> None:
        seq, tokens = session.evict()
        del self._placed[seq]
        self._caches.release(seq, tokens)

    def _longest_idle(self) -> Session | None:
        """The session that has kept its sequence unused for longest, if for IDLE_S."""
        idle = [s for s in self._sessions.values() if s.seq is not None and not s.needs_place]
        longest = min(idle, key=lambda s: s.waiting_since, default=None)
        if longest is None or self._clock() - longest.waiting_since < IDLE_S:
            return None
        return longest

    def wait_s(self) -> float | None:
        """How long a shell may sleep when next_batch had nothing and no frame comes."""
        now = self._clock()
        placed = [s for s in self._sessions.values() if s.seq is not None]
        waits = []
        if any(s.seq is None and s.needs_place for s in self._sessions.values()):
            waits = [s.waiting_since + IDLE_S - now for s in placed if not s.needs_place]
        past_prompt = [s for s in placed if s.num_uncached == 1]
        if self.limits.batch.mode == "rounds" and any(s.ready for s in past_prompt):
            waits.append(round_opens_in(past_prompt, self.limits.batch, now))
        return max(min(waits), 0.0) if waits else None

    def _choose(self, sessions: list[Session]) -> list[tuple[Session, Work]]:
        """Sessions that were in a crash go alone, until a pass with them has gone well."""
        now, limits = self._clock(), self.limits.batch
        pass_s = self.controller.pass_seconds(limits.max_rows)
        suspects = [session for session in sessions if session.num_crashes]
        for suspect in sorted(suspects, key=lambda s: s.num_crashes):
            if chosen := form_batch([suspect], limits, pass_s, now):
                return chosen
        return form_batch([s for s in sessions if not s.num_crashes], limits, pass_s, now)

    # --- commit --------------------------------------------------------------------------------

    def complete(self, result: StepResult) -> list[Outgoing]:
        """Apply what the engine answered to the batch that is running."""
        out: list[Outgoing] = []
        now = self._clock()
        running, self._running = self._running, []
        self.counters.num_batches += 1
        self.counters.forward_s += result.forward_s
        self.counters.num_replay_differences += result.num_replay_differences
        if all(work.samples and work.num_rows == work.num_draft + 1 for work in self._works):
            num_rows = sum(work.num_rows for work in self._works)
            self.controller.passed(num_rows, len(self._works), result.forward_s)
        for session, work, outcome in zip(running, self._works, result.outcomes, strict=True):
            session.busy = False
            session.num_crashes = 0
            self.counters.num_rows += work.num_rows
            if session.closed:
                self._release(session)
                continue
            if not work.samples:
                session.num_cached = work.start + work.num_rows
                continue
            if outcome.failure is not None:
                failure = MultispinError(outcome.failure, code="engine_failed")
                out.append(self._error(session.key.link, session.key.session, failure))
                self._end(session)
                continue
            self.controller.answered(session.key)
            session.learn(outcome, work.num_draft)
            self._learn(session)
            allowed = self.controller.grant(session.key)
            verdict = session.commit(outcome, work.num_draft, allowed, now)
            self._count(work.num_draft, verdict)
            out.append(Outgoing(session.key.link, verdict))
            if verdict.finish:
                self._end(session)
                self._ended[session.key] = None
                if len(self._ended) > MAX_ENDED:
                    del self._ended[next(iter(self._ended))]
        return out

    def engine_lost(self) -> list[Outgoing]:
        """The engine died in the running batch, and every cache with it: feed all anew.

        A session that was there at MAX_CRASHES crashes in a row is taken for their cause.
        """
        out = []
        running, self._running = self._running, []
        for session in running:
            session.busy = False
            session.num_crashes += 1
        self._caches.lost()
        for session in list(self._sessions.values()):
            session.num_cached = 0
            if session.closed:
                self._release(session)
            elif session.num_crashes >= MAX_CRASHES:
                error = MultispinError(
                    f"the engine crashed {MAX_CRASHES} times on this session", code="engine_failed"
                )
                out.append(self._error(session.key.link, session.key.session, error))
                self._end(session)
        return out

    def _count(self, num_draft: int, verdict: Verdict) -> None:
        counters = self.counters
        counters.num_committed_tokens += verdict.num_committed
        if num_draft:
            counters.num_drafts += 1
            counters.num_draft_tokens += num_draft
            counters.num_accepted_tokens += verdict.num_accepted

    def _end(self, session: Session) -> None:
        session.closed = True
        if not session.busy:
            self._release(session)

    def _release(self, session: Session) -> None:
        del self._sessions[session.key]
        self.controller.leave(session.key)
        if session.seq is not None:
            self._evict(session)

    def _error(self, link: Hashable, session: int | None, error: MultispinError) -> Outgoing:
        self.counters.num_errors += 1
        return Outgoing(link, Error(session, error.code, str(error)))


def _leads(other: Session, session: Session) -> bool:
    """Whether a prompt that is being computed begins in the same way: better wait and copy."""
    if other.num_uncached == 1 or other.num_crashes:
        return False
    common = num_common(session.tokens(0, session.length), other.tokens(0, other.length))
    return common >= other.num_cached + MIN_SHARED
