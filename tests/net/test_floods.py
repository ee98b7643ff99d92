"""What one peer can cost everybody else: memory and time that it takes are bounded, whatever it
sends, and what it is refused with is counted."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
import tracemalloc
from pathlib import Path

import pytest
import websockets.exceptions

from multispin.api import connection, device_socket
from multispin.api.body import decode
from multispin.api.errors import ApiError
from multispin.api.login import cookie_token
from multispin.api.openai_schema import CompletionRequest
from multispin.core.batch import BatchLimits
from multispin.net import offences, server_link
from multispin.net.logs import EventLog, TextFormatter
from multispin.net.schema_trial import SchemaTrials
from multispin.net.tokens import Tokens
from multispin.wire import frames
from multispin.wire.frames import Draft, Error, Hello, Opened
from multispin.wire.padding import Packer
from tests.core.harness import Harness, new_server, request
from tests.identity import add
from tests.net.raw import HELLO, Served, play, until

PADDED = Hello(1, "lookup", pads=True)
EMPTY = Packer().tick()[0]  # a parcel without anything in it


# --- drafts --------------------------------------------------------------------------------------


def opened_in_window() -> tuple[Harness, Opened]:
    server = new_server(batch=BatchLimits(mode="window"))
    [(_, opened)] = server.open(request(draft_length=4))
    assert isinstance(opened, Opened)
    return server, opened


@pytest.mark.parametrize("epoch", [0, -1], ids=["due", "stale"])
def test_a_draft_is_measured_before_it_is_unpacked(
    epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, opened = opened_in_window()

    def unpack(data: bytes, bits: int) -> list[int]:
        raise AssertionError(f"{len(data)} bytes are unpacked")

    monkeypatch.setattr(frames, "_unpack", unpack)
    [(_, error)] = server.draft(Draft(opened.session, epoch, 1000, bytes(8), bytes(1 << 20)))
    assert isinstance(error, Error) and error.code == "draft_too_long"


def test_a_digest_has_its_length() -> None:
    server, opened = opened_in_window()
    [(_, error)] = server.draft(Draft(opened.session, 0, 1000, bytes(1 << 20), b""))
    assert isinstance(error, Error) and error.code == "bad_frame"


def test_of_drafts_that_come_early_no_more_is_kept_than_is_needed() -> None:
    server, opened = opened_in_window()
    start = len(server.engine.tokenize(request().prompt, parse_special=False))
    tracemalloc.start()
    try:
        for ahead in range(1, 5):
            ballast = [(bytes(1 << 20), b"")]  # this rule has no use for proposals
            digest = bytes(8)
            assert not server.draft(
                Draft(opened.session, 0, start + ahead, digest, b"", proposals=ballast)
            )
        assert tracemalloc.get_traced_memory()[0] < 2 << 20
    finally:
        tracemalloc.stop()


def test_a_trace_is_no_place_for_megabytes() -> None:
    server = new_server()
    opening = request()
    fields = {name: getattr(opening, name) for name in opening.__struct_fields__}
    [(_, error)] = server.open(frames.Open(**{**fields, "trace": "x" * (1 << 20)}))
    assert isinstance(error, Error) and error.code == "bad_input"


# --- sockets -------------------------------------------------------------------------------------


def test_who_does_not_read_parcels_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_link, "MAX_UNSENT", 100_000)

    async def scene(it: Served) -> None:
        device = await it.connect(PADDED)
        transport = device.socket.transport
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        transport.pause_reading()
        monkeypatch.setattr(offences, "MAX_FRAMES_PER_S", 1_000_000)
        with pytest.raises((websockets.exceptions.ConnectionClosed, TimeoutError)):
            async with asyncio.timeout(5):
                while not it.telemetry.refusals:
                    await device.socket.send(EMPTY)
                raise TimeoutError
        assert it.telemetry.refusals == {"too_slow": 1}
        await it.is_empty()

    play(scene)


def test_empty_parcels_are_messages_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offences, "MAX_FRAMES_PER_S", 20)

    async def scene(it: Served) -> None:
        device = await it.connect(PADDED)
        began = asyncio.get_running_loop().time()
        for _ in range(500):
            await device.socket.send(EMPTY)
        num_answers = 0
        while asyncio.get_running_loop().time() - began < 0.5:
            try:
                async with asyncio.timeout(0.2):
                    await device.socket.recv()
                    num_answers += 1
            except TimeoutError:
                pass
        seconds = asyncio.get_running_loop().time() - began
        assert 10 < num_answers <= 20 * (seconds + 1) + 1
        monkeypatch.undo()
        device.socket.transport.abort()

    play(scene)


@pytest.mark.parametrize("kind", ["pings", "crumbs of a message"])
def test_a_flood_of_what_is_no_message_ends_the_link(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masked, with a mask of zeros: empty pings, or a message's first frame and empty others."""
    first, others = (b"", b"\x89\x80") if kind == "pings" else (b"\x02\x80" + bytes(4), b"\x00\x80")
    if kind == "pings":
        monkeypatch.setattr(offences, "MAX_FRAMES_PER_S", 100)
    else:
        monkeypatch.setattr(device_socket, "MAX_PARTS", 100)

    async def scene(it: Served) -> None:
        device = await it.connect(HELLO)
        device.socket.transport.write(first + (others + bytes(4)) * 150)
        await until(lambda: it.telemetry.refusals)
        assert it.telemetry.refusals == {"bad_frame": 1}
        await it.is_empty()

    play(scene)


def test_who_does_not_read_pongs_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_socket, "MAX_UNSENT", -1)

    async def scene(it: Served) -> None:
        device = await it.connect(HELLO)
        await device.socket.ping()
        await until(lambda: it.telemetry.refusals)
        await it.is_empty()

    play(scene)


def test_the_rest_of_a_body_is_not_waited_for_when_its_request_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene(it: Served) -> None:
        monkeypatch.setattr(connection, "HEAD_S", 0.3)
        reader, writer = await asyncio.open_connection(*it.host_and_port)
        head = f"POST /nothing HTTP/1.1\r\nHost: {it.address}\r\nContent-Length: 1000\r\n\r\n"
        writer.write(head.encode())
        assert b" 404 " in await reader.readline()
        for _ in range(40):
            writer.write(b"x")
            await asyncio.sleep(0.05)
            if "silent" in it.telemetry.refusals:
                break
        assert it.telemetry.refusals == {"http_404": 1, "silent": 1}
        writer.close()

    play(scene)


# --- requests ------------------------------------------------------------------------------------


def test_a_field_that_looks_like_many_paths_takes_no_more_time_than_another() -> None:
    """Milliseconds; half a minute and more where each path is followed to the end."""
    body = json.dumps({"model": "m", "prompt": "x", " - at `$." * 25_000 + "\n": 1}).encode()
    began = time.process_time()
    with pytest.raises(ApiError):
        decode(body, CompletionRequest)
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("cookie", "token"),
    [
        ("multispin_token=msp_a", b"msp_a"),
        ("other=1; multispin_token=msp_a; more=2", b"msp_a"),
        (" multispin_token = msp_a ", b"msp_a"),
        ("xmultispin_token=msp_a", None),
        ("multispin_token", None),
        ("multispin_token=", None),
        ("", None),
    ],
)
def test_a_cookie_is_read_without_pythons_own_parser(
    cookie: str, token: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of 3.11.7 takes 7 s for 60 KB of backslashes, from anybody."""

    def unquote(text: str) -> str:
        raise AssertionError("it is quadratic")

    monkeypatch.setattr("http.cookies._unquote", unquote)
    assert cookie_token({"type": "http", "headers": [(b"cookie", cookie.encode())]}) == token


def test_what_schemas_others_sent_cannot_be_told_by_how_long_a_trial_takes() -> None:
    tried = []

    async def attempt(schema: str) -> str:
        tried.append(schema)
        return ""

    async def scene() -> None:
        trials = SchemaTrials(attempt)
        for owner in ("one", "one", "other"):
            await trials.check("{}", owner)

    asyncio.run(scene())
    assert len(tried) == 2


# --- files, and lines ----------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b'{"tokens":[{"name":"\xff"}]}', b'{"x":' + b"[" * 100_000])
def test_tokens_that_cannot_be_read_are_no_end_of_the_server(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    token = add(file, "phone", "generate")
    tokens = Tokens(str(file))
    file.write_bytes(data)
    tokens.refresh()
    assert tokens.find(token.encode()) is not None


def test_a_name_writes_no_line_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "multispin.events"):
        EventLog().joined(0, Hello(1, "x\n2026-01-01 INFO left device=7 \x1b]0;y\x07\x9b"))
    [record] = caplog.records
    line = TextFormatter().format(record)
    assert "left device=7" in line and line.isprintable()
