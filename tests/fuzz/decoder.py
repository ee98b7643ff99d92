"""Random and mutated frames to the two decoders: a frame, or a clear refusal, and nothing else."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from multispin.errors import PeerError
from multispin.wire import frames
from tests.fuzz.mutate import mutate_bytes, mutate_tree
from tests.process import resident_bytes

CORPUS = Path(__file__).parent / "corpus"
Decode = Callable[[bytes], frames.Frame]


def corpus(name: str) -> list[bytes]:
    """A file of hexadecimal lines; what stands behind # says what it is."""
    lines = (CORPUS / f"{name}.hex").read_text("utf-8").splitlines()
    return [bytes.fromhex(line.split("#")[0]) for line in lines if line.split("#")[0].strip()]


def mutants(seeds: list[bytes], rng: random.Random) -> Iterator[bytes]:
    """For ever: some random, most near to something that makes sense."""
    trees = [(data, _tree(data)) for data in seeds]
    while True:
        data, tree = rng.choice(trees)
        match rng.randrange(20):
            case 0:
                yield rng.randbytes(rng.choice((0, 1, 2, 5, 20, 100)))
            case 1 | 2 | 3 | 4 | 5 | 6 | 7:
                yield mutate_bytes(rng, data, rng.choice(seeds))
            case _:
                for _ in range(rng.choice((1, 1, 2, 3))):
                    tree = mutate_tree(rng, tree)
                yield msgspec.msgpack.encode(tree)


def _tree(data: bytes) -> object:
    try:
        return msgspec.msgpack.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return [data]


def check(decode: Decode, data: bytes) -> bool:
    """Whether it is a frame. A frame comes back from its bytes; a refusal has its code."""
    try:
        frame = decode(data)
    except PeerError as error:
        assert error.code == "bad_frame", data.hex()
        return False
    again = frames.encode(frame)
    assert frames.encode(decode(again)) == again, data.hex()
    return True


def fuzz_decoders(num_frames: int, seed: int) -> dict[str, float]:
    """As many to each decoder; what came of it."""
    rng = random.Random(seed)
    from_device = mutants(corpus("device"), rng)
    from_server = mutants(corpus("server"), rng)
    num_good, slowest_s, resident = 0, 0.0, 0
    for number in range(num_frames // 2):
        if number == num_frames // 4:
            resident = resident_bytes()
        began = time.perf_counter()
        num_good += check(frames.decode_from_device, next(from_device))
        num_good += check(frames.decode_from_server, next(from_server))
        slowest_s = max(slowest_s, time.perf_counter() - began)
    return {
        "frames": num_frames,
        "of_these_well_formed": num_good,
        "slowest_s": slowest_s,
        "growth_in_second_half": resident_bytes() / max(resident, 1) - 1,
    }
