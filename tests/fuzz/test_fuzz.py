"""What no device and no client sends. Long forms: `make soak`."""

from __future__ import annotations

import asyncio
import json
import random

import pytest

from multispin.wire import frames
from tests.fuzz.decoder import CORPUS, check, corpus, fuzz_decoders
from tests.fuzz.http import ask, fuzz_http, requests
from tests.fuzz.mutate import mutate_bytes, mutate_tree
from tests.fuzz.sockets import fuzz_sockets
from tests.process import served

SERVE = ("--target", "ngram", "--ctx-size", "512", "--log-level", "warning")
DECODERS = {"device": frames.decode_from_device, "server": frames.decode_from_server}


@pytest.mark.parametrize("name", DECODERS)
def test_the_corpus_is_frames_and_what_is_none(name: str) -> None:
    seeds = corpus(name)
    num_good = sum(check(DECODERS[name], data) for data in seeds)
    assert 0 < num_good < len(seeds)
    kinds = {data[1] for data in seeds if check(DECODERS[name], data)}
    known = frames.FromDevice.__args__ if name == "device" else frames.FromServer.__args__
    assert kinds == {kind.__struct_config__.tag for kind in known}, "a frame is missing"


def test_mutants_are_many_and_the_same_for_a_seed() -> None:
    def some(seed: int) -> list[bytes]:
        rng = random.Random(seed)
        return [mutate_bytes(rng, b"a frame of some length") for _ in range(200)]

    assert some(1) == some(1) != some(2)
    assert len(set(some(1))) > 150
    rng = random.Random(0)
    tree = [1, [b"x", {"a": 1.0}], None]
    assert sum(mutate_tree(rng, tree) != tree for _ in range(100)) > 80
    assert tree == [1, [b"x", {"a": 1.0}], None]


def test_any_frame_is_decoded_or_refused() -> None:
    told = fuzz_decoders(60_000, seed=1)
    assert told["of_these_well_formed"] > 1000
    assert told["growth_in_second_half"] < 0.1


@pytest.mark.slow
def test_strange_frames_on_sockets_harm_nobody() -> None:
    with served(*SERVE) as (process, address):
        told = asyncio.run(fuzz_sockets(process.pid, address, 1000, seed=2))
        assert process.poll() is None
    assert told["descriptors_left"] == 0
    assert told["bystander_texts"] > 2
    assert len(told["refusals"]) >= 4, told


@pytest.mark.slow
def test_strange_requests_harm_nobody() -> None:
    with served(*SERVE) as (process, address):
        told = asyncio.run(fuzz_http(process.pid, address, 600, seed=3))
        assert process.poll() is None
    assert told["descriptors_left"] == 0
    assert told["bystander_texts"] > 2
    assert {"200", "400", "403", "404"} <= told["statuses"].keys()


def test_the_requests_of_the_corpus_are_answered() -> None:
    lines = (CORPUS / "http.jsonl").read_text("utf-8").splitlines()
    strange = requests(random.Random(0))
    whole = [next(strange) for _ in range(300)]
    assert 100 < sum(is_whole for _, is_whole in whole) < 300

    async def main(address: str) -> None:
        for line in map(json.loads, lines):
            if "raw" in line:
                assert await ask(address, line["raw"].encode(), False) in (0, 200, 400), line
                continue
            body = json.dumps(line.get("body", "")).encode()
            head = f"{line['method']} {line['path']} HTTP/1.1\r\nHost: localhost\r\n"
            head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            assert await ask(address, head.encode() + body, True) in (200, 400, 404, 405), line

    with served(*SERVE) as (_, address):
        asyncio.run(main(address))
