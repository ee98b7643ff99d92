"""Devices that lie, over real sockets: each is refused with its code and counted, and a text that
somebody else has written meanwhile comes out as if they had not been there."""

from __future__ import annotations

import asyncio
import gzip
import os
import random
import socket
import ssl
import zlib
from collections.abc import Awaitable, Callable

import pytest
import websockets.asyncio.client

from multispin.api import connection, serving
from multispin.net import offences, server_link
from multispin.types import Mode
from multispin.wire import frames
from multispin.wire.frames import Close, Hello, Opened, Resume, Tokenize
from tests.core.harness import PROMPT
from tests.net.raw import HELLO, Served, draft, error_of, play, until, wanted

Hostile = Callable[[Served], Awaitable[None]]
LONG = {"max_tokens": 400}


def undisturbed() -> list[int]:
    texts = []

    async def scene(it: Served) -> None:
        innocent = await it.connect(HELLO)
        texts.append(await innocent.text(**LONG))
        await innocent.leave()

    play(scene)
    return texts[0]


@pytest.fixture(scope="module")
def expected() -> list[int]:
    return undisturbed()


def beside_an_innocent(
    expected: list[int], hostile: Hostile, codes: dict[str, int], mode: Mode = "stop-and-wait"
) -> None:
    async def scene(it: Served) -> None:
        innocent = await it.connect(HELLO)
        writing = asyncio.create_task(innocent.text(**LONG))
        await until(lambda: it.server.core.num_sessions)
        await hostile(it)
        assert await writing == expected
        await innocent.leave()
        await it.is_empty()
        assert it.telemetry.refusals == codes
        assert not it.running.done()

    play(scene, mode)


# --- frames that end a session -------------------------------------------------------------------


def _other_text(opened: Opened) -> frames.Draft:
    return draft(opened, [1], digest=bytes(8))


DRAFTS: dict[str, tuple[Callable[[Opened], frames.Draft], str]] = {
    "oversized": (lambda opened: draft(opened, [1] * 40), "draft_too_long"),
    "beyond its grant": (lambda opened: draft(opened, [1] * 5), "draft_too_long"),
    "out of vocabulary": (lambda opened: draft(opened, [257]), "bad_frame"),
    "out of order": (lambda opened: draft(opened, [1], start=1000), "out_of_order"),
    "in the prompt": (lambda opened: draft(opened, [1], start=0), "out_of_order"),
    "of a wrong epoch": (lambda opened: draft(opened, [1], epoch=3), "out_of_order"),
    "with a wrong digest": (_other_text, "digest_mismatch"),
    "for another session": (lambda opened: draft(opened, [1], session=99), "unknown_session"),
}


@pytest.mark.parametrize("kind", DRAFTS)
def test_a_draft_that_cannot_be_is_refused(kind: str, expected: list[int]) -> None:
    make, code = DRAFTS[kind]

    async def hostile(it: Served) -> None:
        device = await it.connect(HELLO)
        opened = await device.open(5)
        message = make(opened)
        await device.send(message)
        error = await error_of(device)
        assert (error.session, error.code) == (message.session, code)
        assert len(await device.text(6)) == 48  # the link goes on
        await device.leave()

    beside_an_innocent(expected, hostile, {code: 1})


def test_in_window_mode_a_draft_of_another_text_is_left_aside(expected: list[int]) -> None:
    """It may follow a token that was rejected meanwhile: honest devices send such drafts."""

    async def hostile(it: Served) -> None:
        device = await it.connect(HELLO)
        sending = [asyncio.create_task(device.text(5, draft_length=4))]
        await until(lambda: it.server.core.num_sessions == 2)
        opened = Opened(5, frames.pack_ids(PROMPT.encode(), 9), 4)
        for number in range(50):
            await device.send(draft(opened, [1, 2, 3], digest=os.urandom(8)))
            await device.send(draft(opened, [number] * 4, epoch=number))
        assert await sending[0] == expected[:48]
        await device.leave()

    beside_an_innocent(expected, hostile, {}, mode="window")


def test_a_session_of_another_link_is_nobodys(expected: list[int]) -> None:
    """Numbers belong to a link: naming the innocent's session reaches nothing."""

    async def hostile(it: Served) -> None:
        device = await it.connect(HELLO)
        opened = await device.open(5)
        for message in (draft(opened, [1], session=0), Close(0)):
            await device.send(message)
        assert (await error_of(device)).code == "unknown_session"
        await device.leave()

    beside_an_innocent(expected, hostile, {"unknown_session": 1})


def test_a_resume_token_cannot_be_guessed(expected: list[int]) -> None:
    async def hostile(it: Served) -> None:
        device = await it.connect(HELLO)
        for session in range(20):  # none is an offence: a server forgets, when it is restarted
            await device.send(Resume(session, os.urandom(16), 10, bytes(8)))
            assert (await error_of(device)).code == "unknown_session"
        await device.send(Resume(1, b"", 10, bytes(8)))
        assert (await error_of(device)).code == "unknown_session"
        await device.leave()

    beside_an_innocent(expected, hostile, {"unknown_session": 21})


def test_drafts_faster_than_the_grant_are_refused(
    expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hostile(it: Served) -> None:
        device = await it.connect(HELLO)
        opened = await device.open(5)
        link = next(k for k in it.server._links if k.uploads._rates.keys() == {5})
        link.uploads.grant(5, 100, 0.0)
        monkeypatch.setattr(offences, "AHEAD_S", 0.5)
        await device.send(draft(opened, [1] * 4))
        error = await error_of(device)
        assert (error.session, error.code) == (5, "too_fast")
        await device.leave()

    beside_an_innocent(expected, hostile, {"too_fast": 1})


# --- what ends a link ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (frames.encode(Hello(99, "x")), "version_mismatch"),
        (frames.encode(Hello(1, "qwen", "0000000000000000")), "vocabulary_mismatch"),
        (frames.encode(Close(1)), "out_of_order"),
        (frames.encode(wanted()), "out_of_order"),
        (b"GET / HTTP/1.1", "bad_frame"),
        (b"", "bad_frame"),
        ("text", "bad_frame"),
        (bytes(frames.MAX_FRAME_BYTES), "bad_frame"),
    ],
)
def test_a_wrong_greeting_ends_the_link(first: bytes | str, code: str, expected: list[int]) -> None:
    async def hostile(it: Served) -> None:
        device = await it.connect()
        await device.socket.send(first)
        error = await error_of(device)
        assert (error.session, error.code) == (None, code)
        assert await device.close_code() == 1000

    beside_an_innocent(expected, hostile, {code: 1})


def test_garbage_amid_a_session_ends_the_link_and_the_session(expected: list[int]) -> None:
    async def hostile(it: Served) -> None:
        device = await it.connect(HELLO)
        await device.open(draft_length=0, max_tokens=400)
        await device.socket.send(b"\xc1")
        assert (await error_of(device)).code == "bad_frame"
        assert await device.close_code() == 1000

    beside_an_innocent(expected, hostile, {"bad_frame": 1})


@pytest.mark.parametrize(
    ("data", "close_code"),
    [
        (b"\xc2\x85" + bytes(4) + zlib.compress(bytes(1_000_000))[:5], 1002),  # compressed
        (b"\x82\xff" + (1 << 40).to_bytes(8, "big") + bytes(4), 1009),  # a terabyte
        (b"\x82\x03abc", 1002),  # not masked
        (b"\x8f\x80" + bytes(4), 1002),  # no such kind of frame
    ],
)
def test_what_is_no_websocket_is_cut_off_and_counted(
    data: bytes, close_code: int, expected: list[int]
) -> None:
    async def hostile(it: Served) -> None:
        device = await it.connect(HELLO)
        device.socket.transport.write(data)
        assert (await error_of(device)).code == "bad_frame"
        assert await device.close_code() == close_code

    beside_an_innocent(expected, hostile, {"bad_frame": 1})


def test_compression_is_not_agreed_on() -> None:
    """A bomb needs the permessage-deflate extension: the server offers none."""

    async def scene(it: Served) -> None:
        url = f"ws://{it.address}/v1/device"
        async with websockets.asyncio.client.connect(url, compression="deflate", proxy=None) as ws:
            assert ws.response is not None
            assert "Sec-WebSocket-Extensions" not in ws.response.headers

    play(scene)


# --- repeated offences ---------------------------------------------------------------------------


def test_who_offends_again_and_again_is_cut_off_and_not_let_in_for_a_while(
    expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    async def scene(it: Served) -> None:
        innocent = await it.connect(HELLO)
        writing = asyncio.create_task(innocent.text(**LONG))
        await until(lambda: it.server.core.num_sessions)
        device = await it.connect(HELLO)
        for session in range(1, offences.MAX_OFFENCES + 2):
            await device.send(_other_text(await device.open(session)))
            assert (await error_of(device)).code == "digest_mismatch"
        error = await error_of(device)
        assert (error.session, error.code) == (None, "abusive")
        assert error.retry_after_s == offences.SHUT_OUT_S
        assert await device.close_code() == 1000
        again = await it.connect()
        assert (await error_of(again)).code == "abusive"
        assert await writing == expected  # of the same address, and let in before
        now[0] += offences.SHUT_OUT_S + 1
        assert len(await (await it.connect(HELLO)).text()) == 48
        assert it.telemetry.refusals == {"digest_mismatch": 9, "abusive": 2}

    play(scene, clock=lambda: now[0])


def test_a_new_link_for_each_offence_helps_nobody() -> None:
    async def scene(it: Served) -> None:
        for _ in range(offences.MAX_OFFENCES + 1):
            device = await it.connect()
            await device.socket.send(b"\xc1")
            assert (await error_of(device)).code == "bad_frame"
        device = await it.connect()
        assert (await error_of(device)).code == "abusive"

    play(scene)


def test_what_a_users_mistake_may_be_is_no_offence() -> None:
    async def scene(it: Served) -> None:
        device = await it.connect(HELLO)
        for number in range(30):
            fields, code = (
                ({"stop": ["x"] * 17}, "bad_input"),
                ({"prompt": "x" * 5000}, "context_overflow"),
                ({"draft_length": 33}, "draft_too_long"),
            )[number % 3]
            await device.send(wanted(number, **fields))
            assert (await error_of(device)).code == code
        assert len(await device.text(31)) == 48

    play(scene)


# --- who does not listen, or says nothing --------------------------------------------------------


def test_a_device_that_does_not_read_is_cut_off(
    expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_link, "MAX_UNSENT", 100_000)

    async def hostile(it: Served) -> None:
        device = await it.connect(HELLO)
        transport = device.socket.transport
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        transport.pause_reading()
        for number in range(8):
            await device.send(Tokenize(number, "x" * 200_000))
        await until(lambda: it.telemetry.refusals)

    beside_an_innocent(expected, hostile, {"too_slow": 1})


def test_sessions_whose_device_is_silent_are_ended(
    expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multispin.core.server.ABANDONED_S", 0.3)
    monkeypatch.setattr("multispin.net.server.SWEEP_S", 0.1)

    async def hostile(it: Served) -> None:
        device = await it.connect(HELLO)
        for session in range(20):
            await device.send(wanted(session, max_tokens=300))
        for _ in range(20):
            assert (await error_of(device)).code == "abandoned"
        assert len(await device.text(21)) == 48  # the link goes on
        await device.leave()

    beside_an_innocent(expected, hostile, {"abandoned": 20})


def test_a_flood_is_left_in_the_network(
    expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offences, "MAX_FRAMES_PER_S", 20)

    async def hostile(it: Served) -> None:
        device = await it.connect(HELLO)
        opened = await device.open(5)
        link = next(k for k in it.server.links if 5 in k.uploads._rates)
        before, stale = link.num_received, draft(opened, [], epoch=-1)
        began = asyncio.get_running_loop().time()
        for _ in range(1000):
            await device.send(stale)
        await asyncio.sleep(0.3)
        seconds = asyncio.get_running_loop().time() - began
        num_taken = (link.num_received - before) / len(frames.encode(stale))
        assert 10 < num_taken <= 20 * (seconds + 1) + 1
        monkeypatch.undo()
        device.socket.transport.abort()

    beside_an_innocent(expected, hostile, {})


def test_streams_that_are_opened_and_abandoned_leave_nothing(expected: list[int]) -> None:
    async def hostile(it: Served) -> None:
        for _ in range(5):
            device = await it.connect(HELLO)
            for session in range(10):
                await device.send(wanted(session, max_tokens=300))
            await device.expect(Opened)
            device.socket.transport.abort()
        await until(lambda: it.server.core.num_sessions <= 1)

    beside_an_innocent(expected, hostile, {})


# --- connections ---------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"", b"GET /health HT", b"POST / HTTP/1.1\r\nHost: x\r\nA: "])
def test_a_connection_that_says_nothing_or_half_is_cut_off(
    said: bytes, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hostile(it: Served) -> None:
        monkeypatch.setattr(connection, "HEAD_S", 0.3)
        reader, writer = await asyncio.open_connection(*it.host_and_port)
        writer.write(said)
        assert await closed(reader) == b""
        writer.close()

    beside_an_innocent(expected, hostile, {"silent": 1})


def test_half_a_request_after_a_whole_one_is_cut_off(
    expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hostile(it: Served) -> None:
        monkeypatch.setattr(connection, "HEAD_S", 1.0)
        reader, writer = await asyncio.open_connection(*it.host_and_port)
        whole = f"GET /health HTTP/1.1\r\nHost: {it.address}\r\n\r\n".encode()
        writer.write(whole)
        assert b" 200 " in await reader.readline()
        writer.write(whole[:20])
        assert b'"ok"' in await closed(reader)
        writer.close()

    beside_an_innocent(expected, hostile, {"silent": 1})


def test_who_never_reads_an_answer_is_cut_off(
    expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "STALL_S", 0.3)
    monkeypatch.setattr(serving, "SEND_BUFFER_BYTES", 4096)

    async def hostile(it: Served) -> None:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(it.host_and_port)
            client.sendall(f"GET /openapi.json HTTP/1.1\r\nHost: {it.address}\r\n\r\n".encode())
            await until(lambda: it.telemetry.refusals)

    beside_an_innocent(expected, hostile, {"too_slow": 1})


def test_garbage_is_no_request(expected: list[int]) -> None:
    async def hostile(it: Served) -> None:
        for seed in range(20):
            reader, writer = await asyncio.open_connection(*it.host_and_port)
            writer.write(random.Random(seed).randbytes(300) + b"\r\n\r\n")
            assert b" 400 " in await closed(reader)
            writer.close()

    beside_an_innocent(expected, hostile, {"http_400": 20})


def test_a_compressed_body_is_not_unpacked(expected: list[int]) -> None:
    async def hostile(it: Served) -> None:
        bomb = gzip.compress(bytes(10_000_000))
        reader, writer = await asyncio.open_connection(*it.host_and_port)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {it.address}\r\n"
        head += f"Content-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n"
        writer.write(head.encode() + bomb)
        assert b" 400 " in await reader.readline()
        writer.close()

    beside_an_innocent(expected, hostile, {"http_400": 1})


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.1\r\n\r\n"])
def test_half_a_tls_handshake_is_given_up(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.3)
    monkeypatch.setattr(serving, "HEAD_S", 0.3)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # nobody gets so far as to see a certificate

    async def scene(it: Served) -> None:
        reader, writer = await asyncio.open_connection(*it.host_and_port)
        writer.write(said)
        await closed(reader)
        writer.close()
        await until(lambda: it.telemetry.refusals)
        assert it.telemetry.refusals == {"bad_handshake": 1}

    play(scene, protection=serving.Protection(tls=tls))


async def closed(reader: asyncio.StreamReader) -> bytes:
    """What comes until the server closes."""
    try:
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionError:
        return b""
