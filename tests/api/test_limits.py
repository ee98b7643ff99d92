"""Readers that stop, servers that are full, not there yet, or gone."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import time
from contextlib import suppress
from typing import Any

import pytest
from starlette.types import Message

from multispin.api import serving, sse
from multispin.api.sse import EventStream
from tests.api.conftest import MULTISPIN
from tests.api.stage import Stage, ask, leave, play, until


async def answer_of(address: str, **fields: Any) -> tuple[int, dict[str, str], Any]:
    """Status, headers and document."""
    reader, writer = await ask(address, **fields)
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    body = await reader.readexactly(int(headers["content-length"]))
    await leave(writer)
    return int(head[0].split()[1]), headers, json.loads(body)


# --- slow readers --------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["server", "device"])
def test_a_reader_that_stops_is_cut_off_and_harms_nobody(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "STALL_S", 0.3)
    monkeypatch.setattr(serving, "SEND_BUFFER_BYTES", 4096)

    async def scene(stage: Stage) -> None:
        core, address = stage.server.core, stage.addresses[endpoint]
        it = socket.socket()
        it.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, _, port = address.rpartition(":")
        it.connect((host, int(port)))
        never_end = {"256": -100}
        wanted = {"prompt": "x", "max_tokens": 60_000, "stream": True, "logit_bias": never_end}
        body = json.dumps({"model": "ngram", **wanted}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {address}\r\n"
        it.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await until(lambda: core.num_sessions == 1)
        status, _, document = await answer_of(address, max_tokens=20)
        assert (status, len(document["choices"][0]["text"])) == (200, 20)
        await until(lambda: core.num_sessions == 0)
        assert core.counters.num_committed_tokens < 60_000
        await asyncio.sleep(0.05)
        came = b""
        with it, suppress(ConnectionError):
            while part := it.recv(65_536):
                came += part
        assert 0 < len(came) < 1_000_000
        assert b"[DONE]" not in came

    play(scene, context_length=65_536, num_sequences=2)


class Idle(asyncio.Transport):
    def get_write_buffer_size(self) -> int:
        return 0


def test_a_stream_starts_once_however_many_answers_it_has() -> None:
    waiting: list[Message] = []

    async def main() -> None:
        taken = asyncio.Event()

        async def send(message: Message) -> None:
            waiting.append(message)
            await taken.wait()

        events = EventStream({"state": {"transport": Idle()}}, send)
        starting = [asyncio.create_task(events.start()) for _ in range(5)]
        await asyncio.sleep(0.01)
        assert len(waiting) == 1 and not events.has_started
        taken.set()
        await asyncio.gather(*starting)
        assert [message["type"] for message in waiting] == ["http.response.start"]
        assert events.has_started

    asyncio.run(main())


# --- not now -------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["server", "device"])
def test_a_full_server_says_when_to_come_again(endpoint: str) -> None:
    async def scene(stage: Stage) -> None:
        address = stage.addresses[endpoint]
        stage.engine.steps.clear()
        clients = [await ask(address, stream=i == 0) for i in range(2)]
        await until(lambda: stage.server.core.num_sessions == 2)
        for stream in (False, True):
            status, headers, document = await answer_of(address, stream=stream)
            assert status == 429
            assert int(headers["retry-after"]) >= 1
            assert document["error"]["code"] == "overloaded"
            assert document["error"]["type"] == "rate_limit_error"
        for _, writer in clients:
            await leave(writer)
        stage.engine.steps.set()
        await until(lambda: stage.server.core.num_sessions == 0)
        assert (await answer_of(address, max_tokens=3))[0] == 200

    play(scene, num_sequences=1, max_waiting=1)


def test_a_device_lets_only_so_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multispin.api.texts.MAX_WAITING", 2)

    async def scene(stage: Stage) -> None:
        address = stage.addresses["device"]
        stage.engine.steps.clear()
        clients = [await ask(address) for _ in range(3)]
        await until(lambda: stage.server.core.num_sessions == 1)
        await asyncio.sleep(0.05)
        status, headers, document = await answer_of(address)
        assert (status, document["error"]["code"]) == (429, "overloaded")
        assert "retry-after" in headers
        for _, writer in clients:
            await leave(writer)
        stage.engine.steps.set()
        assert (await answer_of(address, max_tokens=3))[0] == 200

    play(scene, num_places=1)


def test_while_the_model_loads_clients_are_told_to_wait() -> None:
    async def scene(stage: Stage) -> None:
        server, stage.state.server = stage.state.server, None
        address = stage.addresses["server"]
        status, headers, document = await answer_of(address)
        assert (status, document["error"]["code"]) == (503, "loading")
        assert int(headers["retry-after"]) >= 1
        stage.state.server = server
        assert (await answer_of(address, max_tokens=3))[0] == 200

    play(scene)


def test_a_device_that_does_not_wait_for_a_link_says_so() -> None:
    async def scene(stage: Stage) -> None:
        address = stage.addresses["device"]
        reader, writer = await ask(address, stream=True)
        await until(lambda: stage.server.core.counters.num_committed_tokens > 5)
        for link in list(stage.server._links):
            link.close()
        # What was being written ends with an error, and not as if it were complete.
        stream = (await reader.readuntil(b"0\r\n\r\n")).decode()
        assert '"code":"unreachable"' in stream and "[DONE]" not in stream
        await leave(writer)

    play(scene, offline="fail")


def test_a_bug_of_ours_is_not_shown_to_clients(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(stage: Stage) -> None:
        stage.device.write = None  # type: ignore[method-assign, assignment]
        status, _, document = await answer_of(stage.addresses["device"])
        assert status == 500
        assert document["error"]["code"] == "internal"
        assert "NoneType" not in document["error"]["message"]
        assert "NoneType" in caplog.text

    play(scene)


# --- the end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stops", ["server", "device"])
def test_a_signal_ends_streams_in_good_order(stops: str) -> None:
    serve = [*MULTISPIN, "serve", "--target", "ngram", "--port", "0", "--ctx-size", "65536"]
    serve += ["--drain-s", "0.5"]
    with subprocess.Popen(
        serve, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        agent = [*MULTISPIN, "device", "--server", address, "--draft", "none", "--port", "0"]
        with subprocess.Popen(
            agent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as device:
            try:
                assert device.stdout is not None
                near = device.stdout.readline().strip()
                if stops == "server":
                    asyncio.run(_stream_until_stopped(address, server, "draining"))
                else:
                    asyncio.run(_stream_until_stopped(near, device, "unreachable"))
                stopped = server if stops == "server" else device
                _, errors = stopped.communicate(timeout=20)
                assert stopped.returncode == 0
                assert "Traceback" not in errors
            finally:
                device.kill()
                server.kill()


async def _stream_until_stopped(address: str, process: subprocess.Popen[str], code: str) -> None:
    wanted = {"max_tokens": 60_000, "logit_bias": {"256": -100}, "stream": True}
    reader, writer = await ask(address, **wanted)
    await reader.readuntil(b"data: ")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    rest = b""
    while part := await asyncio.wait_for(reader.read(1 << 20), 10):
        rest = rest[-1000:] + part
    assert time.monotonic() - began < 10
    assert f'"code":"{code}"'.encode() in rest
    await leave(writer)
