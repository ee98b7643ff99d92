"""Padded links: everything arrives, and nothing but powers of two is to be seen."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from multispin.errors import PeerError
from multispin.types import SamplingParams
from multispin.wire import frames
from multispin.wire.frames import Close, Draft, Error, Open, Opened, Tokenize, Verdict
from multispin.wire.padding import (
    CARGO_BYTES,
    MIN_BURST,
    MIN_TICKS,
    PARCEL_BYTES,
    Packer,
    Unpacker,
    goes_on,
)

WIRE_BYTES = PARCEL_BYTES + 4  # of a parcel: its frame's head


def is_power_of_two(number: int) -> bool:
    return number.bit_count() == 1


def opening(num_bytes: int) -> bytes:
    prompt = "x" * num_bytes
    return frames.encode(Open(0, prompt, SamplingParams(), "greedy", 0, 64, 4))


def verdict(num_bytes: int) -> bytes:
    return frames.encode(Verdict(0, 0, 9, 4, 4, 5, 17, 4, text=b"y" * num_bytes))


def some_frame(rng: random.Random) -> bytes:
    size = rng.choice((0, 3, 40, 200, 1000, rng.randrange(20_000)))
    kinds = (
        lambda: opening(size),
        lambda: verdict(size),
        lambda: frames.encode(Draft(1, 2, 3, bytes(8), rng.randbytes(size % 300))),
        lambda: frames.encode(Opened(1, rng.randbytes(size), 4)),
        lambda: frames.encode(Tokenize(1, "t" * size)),
        lambda: frames.encode(Error(None, "c", "m" * size)),
    )
    return rng.choice(kinds)()


@pytest.mark.parametrize("seed", range(20))
def test_frames_arrive_whole_and_in_order_in_parcels_of_one_size(seed: int) -> None:
    rng, packer, unpacker = random.Random(seed), Packer(), Unpacker()
    sent, parcels = [], []
    for _ in range(200):
        if rng.random() < 0.4:
            sent.append(some_frame(rng))
            parcels += packer.add(sent[-1])
        else:
            parcels += packer.tick()
    parcels += packer.rest()
    assert packer.num_waiting == 0
    assert {len(parcel) for parcel in parcels} == {WIRE_BYTES}
    assert [frame for parcel in parcels for frame in unpacker.feed(parcel)] == sent


@pytest.mark.parametrize("num_bytes", [0, 30, 900, 1000, 5000, 100_000])
def test_what_opens_a_text_leaves_at_once_as_a_power_of_two(num_bytes: int) -> None:
    packer = Packer()
    frame = opening(num_bytes)
    num_parcels = len(packer.add(frame))
    assert packer.num_waiting == 0
    assert is_power_of_two(num_parcels) and num_parcels >= MIN_BURST
    assert num_parcels == MIN_BURST or num_parcels * CARGO_BYTES < 2 * (len(frame) + 4)


def test_drafts_and_verdicts_wait_and_look_alike() -> None:
    for num_bytes in range(90):
        packer = Packer()
        assert packer.add(verdict(num_bytes)) == []
        assert [len(parcel) for parcel in packer.tick()] == [WIRE_BYTES]
        assert packer.num_waiting == 0
        assert [len(parcel) for parcel in packer.tick()] == [WIRE_BYTES]  # with nothing in it


def test_who_has_more_to_say_sends_twice_as_many_from_then_on() -> None:
    packer = Packer()
    counts = []
    for _ in range(200):
        packer.add(verdict(1500))
        counts.append(len(packer.tick()))
    assert all(is_power_of_two(count) for count in counts)
    assert counts == sorted(counts)
    assert counts[-1] == 16  # the least that carries 1,500 bytes a tick
    for _ in range(100):
        assert len(packer.tick()) == 16  # nobody sees that it has stopped


def test_a_run_ends_at_a_power_of_two() -> None:
    for num_busy in range(1, 1000):
        num_ticks = 0
        while goes_on(num_ticks, num_ticks < num_busy):
            num_ticks += 1
        assert is_power_of_two(num_ticks)
        assert max(MIN_TICKS, num_busy) <= num_ticks < max(2 * num_busy, MIN_TICKS + 1)


def test_the_parcel_of_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    found = re.search(r"alone in a parcel: `([0-9a-f]+)` and (\d+) zeros", text)
    assert found is not None
    documented = bytes.fromhex(found[1]) + bytes(int(found[2]))
    packer = Packer()
    packer.add(frames.encode(Close(0)))
    assert packer.tick() == [documented]
    assert Unpacker().feed(documented) == [frames.encode(Close(0))]


def parcel(data: bytes) -> bytes:
    return bytes((0x92, 11, 0xC4, len(data))) + data


@pytest.mark.parametrize(
    "message",
    [
        b"",
        verdict(3),
        parcel(bytes(PARCEL_BYTES - 1)),
        parcel(bytes(PARCEL_BYTES + 1)),
        parcel(b"\xff\x00" + bytes(CARGO_BYTES)),  # claims more than it holds
        parcel(b"\x04\x00" + bytes(CARGO_BYTES)),  # a frame of no bytes
        parcel(b"\x04\x00" + b"\xff" * CARGO_BYTES),  # and one of 4 GiB
    ],
)
def test_what_is_no_parcel_is_refused(message: bytes) -> None:
    with pytest.raises(PeerError) as raised:
        Unpacker().feed(message)
    assert raised.value.code == "bad_frame"


def test_random_bytes_are_refused_or_frames() -> None:
    rng = random.Random(5)
    sound = parcel((4 + len(verdict(20))).to_bytes(2, "little") + bytes(CARGO_BYTES))
    for _ in range(3000):
        message = bytearray(sound)
        for _ in range(rng.randrange(1, 4)):
            message[rng.randrange(len(message))] = rng.randrange(256)
        unpacker = Unpacker()
        try:
            for _ in range(3):
                assert all(unpacker.feed(bytes(message)))
        except PeerError as error:
            assert error.code == "bad_frame"
