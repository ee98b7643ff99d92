"""How offences add up and are forgotten, and when uploads are too fast."""

from __future__ import annotations

import asyncio
import random

import pytest

from multispin.core.batch import BatchLimits
from multispin.core.controller import ControlSettings
from multispin.core.server import ServerLimits
from multispin.net import offences
from multispin.net.engine_process import LocalEngine
from multispin.net.offences import (
    AHEAD_S,
    FORGIVE_S,
    MAX_FRAMES_PER_S,
    MAX_OFFENCES,
    MAX_PEERS,
    REST_S,
    SHUT_OUT_S,
    Offences,
    Pace,
    Peers,
    Uploads,
    is_offence,
)
from multispin.net.server import EdgeServer
from multispin.net.telemetry import Telemetry
from multispin.types import Mode
from multispin.wire.frames import Draft, Open, Resume
from tests.core.harness import new_engine
from tests.net.raw import wanted
from tests.net.test_server import device, text_of
from tests.net.test_server import wanted as request

A_DRAFT = Draft(0, 0, 0, b"", b"")


def test_one_more_than_allowed_is_too_many() -> None:
    offences = Offences()
    assert [offences.add(0.0) for _ in range(MAX_OFFENCES + 2)] == [False] * 8 + [True] * 2


def test_an_offence_now_and_then_is_never_too_many() -> None:
    offences = Offences()
    assert not any(offences.add(1.01 * FORGIVE_S * i) for i in range(1000))


def test_offences_slightly_faster_than_they_are_forgotten_are_too_many_in_the_end() -> None:
    offences = Offences()
    assert any(offences.add(0.9 * FORGIVE_S * i) for i in range(1000))


@pytest.mark.parametrize(
    ("message", "code", "expected"),
    [
        (None, "bad_frame", True),
        (A_DRAFT, "draft_too_long", True),
        (A_DRAFT, "unknown_session", True),
        (A_DRAFT, "too_fast", True),
        (A_DRAFT, "engine_failed", False),
        (wanted(), "out_of_order", True),
        (wanted(), "draft_too_long", False),
        (wanted(), "bad_input", False),
        (wanted(), "overloaded", False),
        (wanted(), "rate_limited", False),
        (Resume(0, b"", 0, b""), "unknown_session", False),
        (Resume(0, b"", 0, b""), "digest_mismatch", True),
        (None, "version_mismatch", False),
        (None, "draining", False),
    ],
)
def test_an_offence_is_the_devices_own_doing(
    message: Draft | Open | Resume | None, code: str, expected: bool
) -> None:
    assert is_offence(message, code) is expected


def test_a_peer_is_shut_out_for_a_while_and_others_are_not() -> None:
    now = [0.0]
    peers = Peers(lambda: now[0])
    for _ in range(MAX_OFFENCES):
        peers.offended("bad")
        assert peers.shut_out_s("bad") == 0
    peers.offended("bad")
    assert peers.shut_out_s("bad") == SHUT_OUT_S
    assert peers.shut_out_s("good") == 0
    now[0] += SHUT_OUT_S - 1
    assert peers.shut_out_s("bad") == 1
    now[0] += 1
    assert peers.shut_out_s("bad") == 0
    peers.offended("bad")  # what it did is not forgotten so soon
    assert peers.shut_out_s("bad") == SHUT_OUT_S


def test_what_is_remembered_of_peers_is_bounded() -> None:
    peers = Peers(lambda: 0.0)
    for number in range(3 * MAX_PEERS):
        for _ in range(MAX_OFFENCES + 1):
            peers.offended(number)
    assert len(peers._offences) == len(peers._shut_out) == MAX_PEERS
    assert peers.shut_out_s(3 * MAX_PEERS - 1) > 0


# --- pace ----------------------------------------------------------------------------------------


def test_no_flood_is_faster_than_the_pace_and_who_keeps_to_it_never_waits() -> None:
    rng, flood, pace, now = random.Random(1), Pace(), Pace(), 100.0
    num_taken, rests_until = 0, 0.0
    for _ in range(100_000):
        now += rng.random() * 2 / 20_000  # 20,000 frames a second
        if now > rests_until:
            num_taken += 1
            rests_until = now + REST_S if flood.is_spent(now) else 0.0
    assert num_taken <= MAX_FRAMES_PER_S * (now - 100.0 + 1) + 1
    now = 100.0
    for _ in range(20_000):
        now += rng.random() * 2 / (0.9 * MAX_FRAMES_PER_S)
        assert not pace.is_spent(now)


# --- uploads -------------------------------------------------------------------------------------


class Sender:
    """Sends drafts as a device does (net.device), at ``speed`` times its grants; each arrives after
    whatever delay the network has at the moment, none before the one before it."""

    def __init__(self, seed: int, speed: float) -> None:
        self.rng = random.Random(seed)
        self.speed = speed
        self.uploads = Uploads()
        self.now = self.free_at = self.arrived_at = 0.0

    def is_caught(self, num_drafts: int, rates: list[int], most_delay_s: float) -> bool:
        known = dict.fromkeys(range(3), 20_000)
        for session in known:
            self.uploads.grant(session, 20_000, 0.0)
        on_the_way: list[tuple[float, int, int]] = []  # grants, and when they are known
        for _ in range(num_drafts):
            while on_the_way and on_the_way[0][0] <= self.now:
                _, session, rate = on_the_way.pop(0)
                known[session] = rate
            session = self.rng.choice(list(known))
            num_bits = self.rng.randrange(600, 5000)
            self.free_at = max(self.free_at, self.now) + num_bits / known[session] / self.speed
            self.now = self.free_at
            delay = self.rng.random() * most_delay_s
            self.arrived_at = max(self.arrived_at, self.now + delay)
            if self.uploads.is_too_fast(session, num_bits, self.arrived_at):
                return True
            if self.rng.random() < 0.01:
                rate = self.rng.choice(rates)
                self.uploads.grant(session, rate, self.arrived_at)
                on_the_way.append((self.arrived_at + most_delay_s, session, rate))
        return False


@pytest.mark.parametrize("seed", range(20))
def test_who_keeps_to_its_grants_is_never_too_fast(seed: int) -> None:
    rates = [2000, 20_000, 200_000]
    assert not Sender(seed, 1.0).is_caught(3000, rates, most_delay_s=1.0)


@pytest.mark.parametrize("seed", range(20))
def test_who_sends_at_twice_its_grant_is(seed: int) -> None:
    assert Sender(seed, 2.0).is_caught(3000, [20_000], most_delay_s=1.0)


def test_where_nothing_is_granted_everything_goes() -> None:
    uploads = Uploads()
    assert not uploads.is_too_fast(0, 1 << 40, 0.0)
    uploads.grant(0, 0, 0.0)
    assert not uploads.is_too_fast(0, 1 << 40, 0.0)
    uploads.grant(0, 8, 1.0)  # which the device may not know yet
    assert not uploads.is_too_fast(0, 1 << 40, 2.0)
    assert uploads.is_too_fast(0, 1 << 40, 2.0 + AHEAD_S)
    uploads.end(0)
    assert not uploads.is_too_fast(0, 1 << 40, 3.0 + AHEAD_S)


@pytest.mark.parametrize("mode", ["window", "stop-and-wait"])
def test_our_devices_keep_to_what_the_server_adds_up(
    mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ends count the same bits, at the rates that they tell each other."""
    monkeypatch.setattr(offences, "AHEAD_S", 0.5)
    telemetry, most_ahead_s = Telemetry(), [0.0]
    is_too_fast = Uploads.is_too_fast

    def noted(self: Uploads, session: int, num_bits: int, now: float) -> bool:
        found = is_too_fast(self, session, num_bits, now)
        most_ahead_s[0] = max(most_ahead_s[0], self._free_at - now)
        return found

    monkeypatch.setattr(Uploads, "is_too_fast", noted)

    async def main() -> None:
        control = ControlSettings("fixed", uplink_bits_per_s=40_000)
        limits = ServerLimits(batch=BatchLimits(max_rows=64, mode=mode), control=control)
        server = EdgeServer(LocalEngine(new_engine()), limits, observers=[telemetry])
        running = asyncio.create_task(server.run())
        async with device(server, "lookup") as one, device(server, "weaker") as other:
            texts = [text_of(it, request(seed)) for it, seed in ((one, 1), (one, 2), (other, 3))]
            await asyncio.wait_for(asyncio.gather(*texts), 60)
        running.cancel()

    asyncio.run(main())
    assert telemetry.refusals == {}
    assert 0.005 < most_ahead_s[0] < 0.5  # a draft of 600 bits at 40,000 bit/s takes 15 ms
