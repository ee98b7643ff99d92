"""HTTP requests that no client sends, to a server that others use meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tests.fuzz.bystander import bystander
from tests.fuzz.decoder import CORPUS
from tests.fuzz.mutate import HOSTILE, mutate_bytes, mutate_tree
from tests.process import num_descriptors, resident_bytes

ANSWER_S = 20.0  # a server that has not answered by then hangs
STRANGE = tuple(value for value in HOSTILE if not isinstance(value, bytes))
TOKENS = ("max_tokens", "max_completion_tokens", "n", "best_of")
MOST_TOKENS = 32  # of an answer: the requests are looked at, not the model
BUGS = (500, 501, 502)


def requests(rng: random.Random) -> Iterator[tuple[bytes, bool]]:
    """For ever: most with a body that is nearly right, some with a broken head; and whether it is
    a whole request, which must be answered."""
    seeds = [json.loads(line) for line in (CORPUS / "http.jsonl").read_text("utf-8").splitlines()]
    while True:
        seed = rng.choice(seeds)
        if "raw" in seed:
            yield mutate_bytes(rng, seed["raw"].encode()), False
            continue
        body = seed.get("body")
        data = b"" if body is None else _body(rng, body)
        head = _head(rng, seed["method"], seed["path"], len(data))
        is_whole = b"Content-Length: %d\r" % len(data) in head or not data
        if b"Transfer-Encoding" in head or b"Content-Length: 9999" in head:
            is_whole = False
        if rng.random() < 0.2:
            yield mutate_bytes(rng, head + data), False
        else:
            yield head + data, is_whole


def _body(rng: random.Random, body: Any) -> bytes:
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        body = mutate_tree(rng, body, STRANGE)
    if isinstance(body, dict):
        for name in TOKENS:
            if isinstance(body.get(name), int) and body[name] > MOST_TOKENS:
                body[name] = MOST_TOKENS
    data = json.dumps(body, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return data if rng.random() < 0.8 else mutate_bytes(rng, data)


def _head(rng: random.Random, method: str, path: str, length: int) -> bytes:
    headers = {"Host": "127.0.0.1", "Connection": "close", "Content-Type": "application/json"}
    if length or rng.random() < 0.1:
        headers["Content-Length"] = str(length)
    match rng.randrange(30):
        case 0:
            method = rng.choice(("PUT", "HEAD", "OPTIONS", "TRACE", "post", "\x00", "A" * 300))
        case 1:
            path = rng.choice(
                ("/" * 3000, "/../../etc/passwd", "/%00", "/v1/device", path + "?a=%")
            )
        case 2:
            headers[rng.choice(("X", "Traceparent", "Origin", "Upgrade"))] = rng.choice(
                ("", "x" * 9000, "00-0-0-0", "https://evil.example", "websocket", "null")
            )
        case 3:
            headers["Content-Length"] = rng.choice(
                ("-1", "x", "0", "1e3", str(length - 1), "9" * 30)
            )
        case 4:
            headers["Transfer-Encoding"] = rng.choice(("chunked", "gzip", "chunked, chunked"))
        case 5:
            headers["Content-Type"] = rng.choice(("", "text/plain", "application/json; charset=x"))
        case 6:
            headers["Host"] = rng.choice(("evil.example", "", "[::1", "localhost:99999"))
        case 7:
            headers["Expect"] = "100-continue"
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode("utf-8", "replace") + b"\r\n\r\n"


async def ask(address: str, request: bytes, is_whole: bool) -> int:
    """Send it and nothing more, read to the end; the status, 0 if there was no answer."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    answer = b""
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(request)
            if not is_whole:  # whoever waits for the rest learns that there is none
                writer.write_eof()
            async with asyncio.timeout(ANSWER_S):
                while part := await reader.read(1 << 16):
                    answer = (answer + part)[: 1 << 12]
    except TimeoutError:
        raise AssertionError(f"no answer to {request!r}") from None
    finally:
        writer.transport.abort()
    if answer.startswith(b"HTTP/1.1 100 "):
        answer = answer.partition(b"\r\n\r\n")[2]
    status = int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0
    assert status not in BUGS, (request, answer)
    assert status or not (answer or is_whole), (request, answer)
    return status


async def fuzz_http(
    pid: int, address: str, num_requests: int, seed: int, at_once: int = 4
) -> dict[str, object]:
    """Requests to the server of that process, several at once; what came of it."""
    statuses: Counter[int] = Counter()

    async def client(rng: random.Random, portion: int) -> None:
        strange = requests(rng)
        for _ in range(portion):
            statuses[await ask(address, *next(strange))] += 1

    async with bystander(address) as beside:
        descriptors = num_descriptors(pid)
        resident = []
        for half in range(2):
            portion = num_requests // 2 // at_once
            rngs = [random.Random(f"{seed} {half} {number}") for number in range(at_once)]
            await asyncio.gather(*(client(rng, portion) for rng in rngs))
            await asyncio.sleep(0.5)
            resident.append(resident_bytes(pid))
        left = num_descriptors(pid) - descriptors
    return {
        "requests": statuses.total(),
        "bystander_texts": beside.num_texts,
        "growth_in_second_half": resident[1] / max(resident[0], 1) - 1,
        "descriptors_left": left,
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
    }
