"""A device on a virtual clock: the second shell around core.device, beside net.device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from multispin.core.confidence import Calibration
from multispin.core.device import DeviceSession, Job
from multispin.core.drafter import Drafted, Drafter
from multispin.core.server import Outgoing, ServerCore
from multispin.core.welcome import welcome
from multispin.sim.events import Events
from multispin.types import TokenIds
from multispin.wire.frames import Draft, Open, Opened, Verdict
from multispin.wire.payload import Payload


class Text(NamedTuple):
    """One text to be written."""

    request: Open
    prompt: TokenIds
    drafter: Drafter | None


@dataclass(frozen=True)
class VirtualDevice:
    """A device and its link, as they truly are."""

    write: Callable[[int], Text]  # its n-th text; each begins as soon as the one before is finished
    upload: Callable[[float, Draft, int], float]  # the end of one begun then, granted so many bit/s
    draft_s_per_token: float = 0.0
    round_trip_s: float = 0.0
    spectral_efficiency: float = 1.0
    payload: Payload | None = None  # for the controller
    cell: str = ""  # the radio cell whose uplink it shares


class Told(NamedTuple):
    """A verdict that has reached its device, and what the device did since the last one."""

    device: int
    at_s: float
    verdict: Verdict
    num_pass: int  # the pass that judged it, from 0
    draft_s: float
    upload_s: float
    upload_bits_per_s: int  # granted for the last upload; 0 without one


class Seat:
    """A device in its cell: greets, then writes text after text.

    ``deliver`` is told what the server answers, ``told`` of every verdict.
    """

    def __init__(
        self,
        index: int,
        device: VirtualDevice,
        events: Events,
        core: ServerCore,
        deliver: Callable[[list[Outgoing]], None],
        told: Callable[[Told], None],
    ) -> None:
        self.session: DeviceSession | None = None  # None between two texts
        self._index = index
        self._device = device
        self._events = events
        self._core = core
        self._deliver = deliver
        self._told = told
        self._welcome = welcome(core)
        self._calibration = Calibration()
        self._num_texts = 0
        self._is_drafting = self._is_sending = False
        self._uplink_free_at = 0.0
        self._spend_anew()
        self._travel(self._greet)

    def _travel(self, arrive: Callable[[], None]) -> None:
        """A frame is on its way, up or down."""
        self._events.after(self._device.round_trip_s / 2, arrive)

    def _spend_anew(self) -> None:
        self._draft_s = self._upload_s = 0.0
        self._upload_bits_per_s = 0

    # --- one text after another ----------------------------------------------------------------

    def _greet(self) -> None:
        device = self._device
        efficiency, payload = device.spectral_efficiency, device.payload
        self._core.connect(self._index, efficiency, payload, cell=device.cell)
        self._travel(self._open)

    def _open(self) -> None:
        self._text = request, prompt, _ = self._device.write(self._num_texts)
        self._num_texts += 1
        self._travel(lambda: self._deliver(self._core.open(self._index, request, prompt)))

    def answer(self, frame: Opened | Verdict, num_pass: int) -> None:
        """The server sends this."""
        if isinstance(frame, Opened):
            self._travel(lambda: self._begin(frame))
        else:
            self._travel(lambda: self._take(frame, num_pass))

    def _begin(self, opened: Opened) -> None:
        request, _, drafter = self._text
        self.session = DeviceSession(request, opened, drafter, 0, self._welcome, self._calibration)
        self._is_drafting = self._is_sending = False
        self._act(self.session)

    def _take(self, verdict: Verdict, num_pass: int) -> None:
        session, now = self.session, self._events.now
        assert session is not None
        session.apply(verdict, now)
        spent = self._draft_s, self._upload_s, self._upload_bits_per_s
        self._told(Told(self._index, now, verdict, num_pass, *spent))
        self._spend_anew()
        if session.finish is None:
            self._act(session)
        else:
            self.session = None
            self._open()

    # --- drafts --------------------------------------------------------------------------------

    def _act(self, session: DeviceSession) -> None:
        self._draft(session)
        self._send(session)

    def _draft(self, session: DeviceSession) -> None:
        """The next token, unless one is being drafted; those that take no time at once."""
        while not self._is_drafting and (job := session.job()) is not None:
            drafted = session.draft(job)
            seconds = drafted.num_computed * self._device.draft_s_per_token
            if seconds > 0:
                self._is_drafting = True
                self._events.after(seconds, partial(self._drafted, session, job, drafted, seconds))
            else:
                session.add(job, drafted, 0.0)

    def _drafted(self, session: DeviceSession, job: Job, drafted: Drafted, seconds: float) -> None:
        if session is not self.session:  # its text is finished
            return
        self._is_drafting = False
        self._draft_s += seconds
        session.add(job, drafted, seconds)
        self._act(session)

    def _send(self, session: DeviceSession) -> None:
        """One message at a time: what is drafted during an upload shares the next frame."""
        if self._is_sending or not session.sends_now:
            return
        now, rate = self._events.now, session.upload_bits_per_s
        draft = session.message()
        done = self._device.upload(max(self._uplink_free_at, now), draft, rate)
        self._is_sending, self._uplink_free_at = True, done
        self._upload_s += done - now
        self._upload_bits_per_s = rate
        self._events.after(done - now, partial(self._sent, session, draft))

    def _sent(self, session: DeviceSession, draft: Draft) -> None:
        if session is not self.session:
            return
        self._travel(lambda: self._deliver(self._core.draft(self._index, draft)))
        self._is_sending = False
        self._send(session)
