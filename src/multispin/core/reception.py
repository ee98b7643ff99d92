"""How sessions begin: at a prompt, behind a text that is brought along, or where a link was lost.

All the state of a session is its request and its tokens: all three are one thing from here on.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import msgspec
import numpy as np

from multispin.core.admission import check_open, check_prompt, unpack_committed
from multispin.core.cells import Cells
from multispin.core.confidence import Calibration
from multispin.core.controller import SessionKey
from multispin.core.detached import TOKEN_BYTES, Detached, DetachedSessions
from multispin.core.engine import EngineInfo
from multispin.core.gate import Gate
from multispin.core.limits import ServerLimits
from multispin.core.session import Session
from multispin.core.tenant import Tenant
from multispin.errors import PeerError
from multispin.lm.base import Vocabulary
from multispin.types import TokenIds
from multispin.wire import frames
from multispin.wire.frames import Open, Opened, Resume


class Reception:
    """Lets sessions in, into ``sessions``, and keeps those that lost their link for a while.

    ``token_bytes`` makes secrets of so many random bytes.
    """

    def __init__(
        self,
        info: EngineInfo,
        vocabulary: Vocabulary,
        limits: ServerLimits,
        controller: Cells,
        clock: Callable[[], float],
        token_bytes: Callable[[int], bytes],
    ) -> None:
        self.sessions: dict[SessionKey, Session] = {}
        self.gate = Gate(info.num_sequences, limits.max_waiting, clock)
        self._info = info
        self._vocabulary = vocabulary
        self._id_bits = frames.id_bits(vocabulary.size)
        self._limits = limits
        self._controller = controller
        self._clock = clock
        self._token_bytes = token_bytes
        self._calibrations: dict[Hashable, Calibration] = {}
        self._detached = DetachedSessions()

    def drop(self, link: Hashable) -> None:
        self._calibrations.pop(link, None)
        self.gate.drop(link)

    # --- check ---------------------------------------------------------------------------------

    def check_open(self, link: Hashable, message: Open) -> None:
        self.check_free(SessionKey(link, message.session))
        tenant = self.gate.tenant(link)
        max_length = tenant.limits.draft_length(self._limits.max_draft_length)
        check_open(message, self._info, self._vocabulary.size, max_length)
        self._check_room(tenant)
        self.gate.check_rate(tenant)

    def check_free(self, key: SessionKey) -> None:
        if key in self.sessions:
            raise PeerError(f"session = {key.session}: is open already", code="out_of_order")

    def _check_room(self, tenant: Tenant) -> None:
        own = [s for s in self.sessions.values() if s.tenant.name == tenant.name and not s.closed]
        self.gate.check(tenant, len(self.sessions), len(own))

    # --- begin ---------------------------------------------------------------------------------

    def open(self, key: SessionKey, message: Open, prompt: TokenIds) -> Opened:
        self.check_open(key.link, message)
        tenant, context_length = self.gate.tenant(key.link), self._info.context_length
        check_prompt(prompt, context_length, tenant.limits.max_prompt_tokens)
        room = context_length - len(prompt)
        committed = unpack_committed(message, self._id_bits, self._vocabulary, room)
        self.gate.began(tenant)
        tokens = np.concatenate([prompt, committed])
        session = self._begin(key, message, tokens, len(prompt), self._token_bytes(TOKEN_BYTES))
        return self._opened(session, prompt, committed[:0])

    def resume(self, key: SessionKey, message: Resume) -> Opened:
        """What was committed and not seen is told, but not where log-probabilities belong to it:
        that is forgotten, and judged anew."""
        kept = self._check_resume(key, message)
        self._detached.remove(message.token)
        seen, unseen = kept.tokens[: message.length], kept.tokens[message.length :]
        if kept.request.num_logprobs >= 0:
            unseen = unseen[:0]
        tokens = np.concatenate([seen, unseen])
        session = self._begin(key, kept.request, tokens, kept.num_prompt, message.token)
        return self._opened(session, seen[:0], unseen)

    def _check_resume(self, key: SessionKey, message: Resume) -> Detached:
        tenant = self.gate.tenant(key.link)
        self._detached.forget_old(self._clock())
        kept = self._detached.find(message.token, tenant.name)
        if kept is None:
            raise PeerError(
                "resume.token: no session of that name is kept: open it anew",
                code="unknown_session",
            )
        kept.check(message)
        self._check_room(tenant)
        return kept

    def _begin(
        self, key: SessionKey, request: Open, tokens: TokenIds, num_prompt: int, resume: bytes
    ) -> Session:
        self._controller.join(key, request.draft_length)
        self._controller.plan()
        session = self.sessions[key] = Session(
            key,
            request,
            tokens,
            num_prompt,
            min(num_prompt + request.max_tokens, self._info.context_length),
            self._vocabulary,
            self._controller.grant(key),
            self._calibrations.setdefault(key.link, Calibration()),
            self._clock(),
            tenant=self.gate.tenant(key.link),
            resume=resume,
            is_window=self._limits.batch.mode == "window",
        )
        return session

    def _opened(self, session: Session, prompt: TokenIds, unseen: TokenIds) -> Opened:
        return Opened(
            session.key.session,
            frames.pack_ids(prompt, self._id_bits),
            session.grant,
            session.allowed.upload_bits_per_s,
            session.resume,
            frames.pack_ids(unseen, self._id_bits),
            self._vocabulary.decode(unseen.tolist()) if session.request.wants_text else b"",
        )

    # --- keep ----------------------------------------------------------------------------------

    @property
    def num_detached(self) -> int:
        return self._detached.forget_old(self._clock())

    def keep(self, session: Session) -> None:
        """Its link is lost. Without a secret that names it, nobody could ask for it."""
        if session.closed or not session.resume:
            return
        now, tokens = self._clock(), session.tokens(0, session.length).copy()
        # Its tokens are in the place of the prompt, which may be long.
        request = msgspec.structs.replace(session.request, prompt="", tools="", committed=b"")
        self._detached.forget_old(now)
        self._detached.keep(
            session.resume,
            Detached(session.tenant.name, request, tokens, session.num_prompt, now),
        )
