"""Devices that lose their links, and go on by token or with what was committed, at random."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from multispin.core.confidence import Calibration
from multispin.core.device import Committed, DeviceSession
from multispin.core.drafter import Drafter
from multispin.core.engine import Batch
from multispin.core.tenant import LOCAL, Tenant
from multispin.core.welcome import welcome
from multispin.types import FinishReason
from multispin.wire.frames import Draft, Error, Open, Opened, TokenLogprobs, Verdict, Welcome
from tests.core.harness import Harness, next_draft


class Traveller:
    """One text. What is in flight when a link is lost is lost with it."""

    def __init__(
        self, name: str, request: Open, drafter: Drafter | None, tenant: Tenant = LOCAL
    ) -> None:
        self.name = name
        self.tenant = tenant
        self.request = request if drafter else msgspec.structs.replace(request, draft_length=0)
        self.session: DeviceSession | None = None
        self._drafter = drafter
        self._num_links = 0
        self.num_resumed = [0, 0]  # by token, with committed ids
        self.link: str | None = None
        self.text = ""
        self.logprobs: list[TokenLogprobs] = []
        self.up: list[Draft] = []
        self.down: list[Verdict] = []

    @property
    def committed(self) -> list[int]:
        return self.session.committed if self.session else []

    @property
    def finish(self) -> FinishReason | None:
        return self.session and self.session.finish

    # --- links ---------------------------------------------------------------------------------

    def lose(self) -> str | None:
        """The device knows that its link is lost; the server may not."""
        lost, self.link = self.link, None
        self.up, self.down = [], []
        if self.session:
            self.session.go_on_alone()
        return lost

    def open(self, harness: Harness) -> None:
        """Begin, or go on with what is committed, on any server."""
        number, hello = self._connect(harness)
        message = self.session.reopening(number, hello) if self.session else self.request
        [(_, opened)] = harness.open(message, self.link)
        assert isinstance(opened, Opened), opened
        assert (opened.committed, opened.text) == (b"", b"")
        if self.session is None:
            self.session = DeviceSession(message, opened, self._drafter, 0, hello, Calibration())
        else:
            self.num_resumed[1] += 1
            assert self.session.resume(message, opened, hello) is None

    def resume(self, harness: Harness) -> bool:
        """Go on by token; whether the server knew of it."""
        if self.session is None:
            return False
        number, hello = self._connect(harness)
        message = self.session.resumption(number)
        assert message is not None
        [(_, answer)] = harness.resume(message, self.link)
        if isinstance(answer, Error):
            assert answer.code == "unknown_session", answer
            return False
        assert answer.prompt_ids == b""
        self.num_resumed[0] += 1
        request = msgspec.structs.replace(self.session.request, session=number)
        self._take(self.session.resume(request, answer, hello))
        return True

    def _connect(self, harness: Harness) -> tuple[int, Welcome]:
        assert self.link is None
        self._num_links += 1
        self.link = f"{self.name} {self._num_links}"
        harness.connect(self.link, self.tenant)
        return self._num_links, welcome(harness.core, self.tenant)

    # --- drafts and verdicts -------------------------------------------------------------------

    def draft(self, num_tokens: int) -> None:
        """For a message, or without a link for later ones."""
        if self.session is None:
            return
        if self.link is not None:
            if draft := next_draft(self.session, num_tokens):
                self.up.append(draft)
        elif job := self.session.job():
            self.session.add(job, self.session.draft(job), 0.0)

    def deliver_up(self, harness: Harness) -> None:
        if self.up:
            for link, frame in harness.draft(self.up.pop(0), self.link):
                assert isinstance(frame, Verdict), frame
                assert link == self.link
                self.down.append(frame)

    def deliver_down(self) -> None:
        if self.down:
            assert self.session is not None
            self._take(self.session.apply(self.down.pop(0), 0.0))

    def _take(self, news: Committed | None) -> None:
        if news is not None:
            assert not news.provisional
            assert news.replaces is None
            self.text += news.text
            self.logprobs += news.logprobs


def travel(
    travellers: list[Traveller],
    new_server: Callable[[], Harness],
    rng: random.Random,
    num_breaks: int,
) -> Harness:
    """Everything in random order until every text is finished, with so many broken links."""
    world = _World(travellers, new_server, rng)
    for _ in range(100_000):
        if all(traveller.finish for traveller in travellers):
            break
        traveller = rng.choice([traveller for traveller in travellers if not traveller.finish])
        if num_breaks and rng.random() < 0.05:
            num_breaks -= 1
            world.break_something(traveller)
        elif traveller.link is None:
            world.come_back(traveller)
        match rng.randrange(5):
            case 0:
                traveller.draft(rng.randint(1, 8))
            case 1:
                traveller.deliver_up(world.harness)
            case 2:
                traveller.deliver_down()
            case 3 | 4 if rng.random() < 0.5:
                world.go_on()
    else:
        raise AssertionError("the texts do not end")
    world.settle()
    return world.harness


class _World:
    """The server of the moment, and what it has not heard yet."""

    def __init__(
        self, travellers: list[Traveller], new_server: Callable[[], Harness], rng: random.Random
    ) -> None:
        self._travellers = {traveller.name: traveller for traveller in travellers}
        self._new_server = new_server
        self._rng = rng
        self._restart()

    def _restart(self) -> None:
        self.harness = self._new_server()
        self._half_dead: list[str] = []  # links that the server takes for alive
        self._batch: Batch | None = None  # that is running
        for traveller in self._travellers.values():
            traveller.lose()

    def break_something(self, traveller: Traveller) -> None:
        """A link, or all of them: the server is another one from now on."""
        if self._rng.random() < 0.1:
            self._restart()
            return
        if (lost := traveller.lose()) is not None:
            self._half_dead.append(lost)
        if self._rng.random() < 0.6:
            self._notice()

    def _notice(self) -> None:
        for link in self._half_dead:
            self.harness.drop(link)
        self._half_dead = []

    def come_back(self, traveller: Traveller) -> None:
        if self._rng.random() < 0.7:
            if traveller.resume(self.harness):
                return
            traveller.lose()
        traveller.open(self.harness)

    def go_on(self) -> None:
        """Begin a pass, or end it."""
        if self._batch is None:
            self._batch = self.harness.core.next_batch()
            return
        result = self.harness.engine.step(self._batch)
        self._batch = None
        for link, frame in self.harness.complete(result):
            assert isinstance(frame, Verdict), frame
            traveller = self._travellers[link.split()[0]]
            if traveller.link == link:
                traveller.down.append(frame)

    def settle(self) -> None:
        """The last pass ends, and the server learns whose link is lost."""
        if self._batch is not None:
            self.harness.complete(self.harness.engine.step(self._batch))
        self._notice()
