"""What the log says of sessions, and that it never says what is in them."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from multispin.errors import BadInput
from multispin.net.logs import BackgroundHandler, EventLog, JsonFormatter, TextFormatter, log
from multispin.net.server import EdgeServer
from multispin.types import SamplingParams
from multispin.wire import frames
from multispin.wire.frames import Close, Error, Hello, Open, Opened
from tests.net.test_server import device, play, text_of, wanted
from tests.net.test_telemetry import verdict

SECRET = "the moon landing of 1969"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Everything that is logged, as JSON."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    ours, root = logging.getLogger("multispin"), logging.getLogger()
    level = ours.level
    root.addHandler(handler)
    ours.setLevel(logging.DEBUG)
    yield stream
    ours.setLevel(level)
    root.removeHandler(handler)


def events(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_sessions_are_told_with_device_session_and_epoch_and_never_with_text(
    lines: io.StringIO,
) -> None:
    written = []

    async def scene(server: EdgeServer) -> None:
        async with device(server, "weaker") as it:
            for seed in range(2):
                ids, text = await text_of(it, wanted(seed, prompt=SECRET, stop=[SECRET]))
                written.append((ids, text))
            async with it.write(wanted(prompt=SECRET, max_tokens=300)) as writing:
                async for _ in writing:
                    break

    play(scene, mode="stop-and-wait", observers=[EventLog()])
    told = events(lines)
    assert {e["event"] for e in told} == {
        *("joined", "opened", "draft", "verdict", "finished", "closed", "left")
    }
    for event in told:
        assert {"time", "level", "event", "device"} <= set(event)
        if event["event"] not in ("joined", "left"):
            assert {"session", "epoch"} <= set(event)
    finished = [e for e in told if e["event"] == "finished"]
    assert [e["num_tokens"] for e in finished] == [48, 48]
    # The epoch counts the drafts of which something was rejected.
    for event in finished:
        mine = [e for e in told if e["event"] == "verdict" and e["session"] == event["session"]]
        assert event["epoch"] == mine[-1]["epoch"]
        assert sum(e["num_committed"] for e in mine) == event["num_tokens"]
    assert finished[0]["epoch"] > 0
    everything = lines.getvalue()
    for secret in (SECRET, *SECRET.split()[1:], *(text for _, text in written)):
        assert secret not in everything
    assert all(str(ids[:4])[1:-1] not in everything for ids, _ in written)


def test_only_the_code_of_an_error_is_told(lines: io.StringIO) -> None:
    events_of = EventLog()
    events_of.joined(3, Hello(1, "lookup"))
    events_of.up(3, Open(8, SECRET, SamplingParams(), "greedy", 0, 10, 4))
    events_of.down(3, Error(8, "bad_input", f"stop = {SECRET}: must not be that"))
    events_of.down(3, Error(None, "bad_frame", SECRET))
    refused, link = events(lines)[1:]
    assert (refused["event"], refused["session"], refused["code"]) == ("refused", 8, "bad_input")
    assert (link["event"], link["device"], link["code"]) == ("link_refused", 3, "bad_frame")
    assert "moon" not in lines.getvalue()


def test_other_libraries_cannot_quote_anybody(lines: io.StringIO) -> None:
    other = logging.getLogger("uvicorn.error")
    other.warning("Invalid request: %s", SECRET)
    try:
        raise BadInput("prompt", SECRET, "must be shorter")
    except BadInput:
        other.exception("Exception in ASGI application\n%s", SECRET)
        logging.getLogger("multispin.api").exception("an answer failed")
    first, second, third = events(lines)
    assert first["event"] == "Invalid request: %s" and first["logger"] == "uvicorn.error"
    assert second["event"] == "Exception in ASGI application"
    for event in (second, third):
        assert event["exception"] == "BadInput"
        assert "test_logs.py" in event["raised"][0]
    assert third["event"] == "an answer failed"
    assert "moon" not in lines.getvalue()


def test_the_end_of_a_link_ends_its_sessions_and_repeats_are_not_counted(
    lines: io.StringIO,
) -> None:
    log_of = EventLog()
    for number in (0, 1):
        log_of.joined(number, Hello(1, "lookup"))
        log_of.up(number, Open(5, SECRET, SamplingParams(), "greedy", 0, 100, 4))
        log_of.down(number, Opened(5, b"", 4))
        for _ in range(2):  # the second time it is sent again
            log_of.down(number, verdict(10, 4, 2, session=5, epoch=number))
    log_of.left(0)
    log_of.up(1, Close(5))
    lost = [e for e in events(lines) if e["event"] == "lost"]
    assert [(e["device"], e["session"], e["epoch"], e["num_tokens"]) for e in lost] == [
        (0, 5, 0, 3)
    ]
    closed = [e for e in events(lines) if e["event"] == "closed"]
    assert [(e["device"], e["session"], e["epoch"], e["num_tokens"]) for e in closed] == [
        (1, 5, 1, 3)
    ]
    log_of.up(1, Close(5))  # again: no news
    assert events(lines)[-1] == closed[0]


def test_requests_to_the_servers_own_endpoint_are_no_devices(lines: io.StringIO) -> None:
    log_of = EventLog()
    log_of.joined(0, Hello(1, "none"))
    log_of.left(0)
    assert events(lines) == []


def test_text_for_people_has_the_same_fields() -> None:
    record = logging.LogRecord("multispin.events", logging.INFO, "", 0, "opened", (), None)
    record.fields = {"device": 1, "session": 2, "epoch": 0}
    assert TextFormatter().format(record).endswith(" INFO opened device=1 session=2 epoch=0")


def test_a_log_that_nobody_reads_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multispin.net.logs.DRAIN_S", 60.0)  # on a busy machine
    reader, writer = os.pipe()
    handler = BackgroundHandler(writer)
    handler.setFormatter(JsonFormatter())
    record = logging.LogRecord("multispin.events", logging.INFO, "", 0, "x" * 200, (), None)
    done = threading.Event()

    def flood() -> None:
        for _ in range(20_000):
            handler.emit(record)
        done.set()

    threading.Thread(target=flood, daemon=True).start()
    try:
        assert done.wait(30)
    finally:
        received = bytearray()

        def drain() -> None:
            while data := os.read(reader, 1 << 16):
                received.extend(data)

        draining = threading.Thread(target=drain)
        draining.start()
    while handler._lines.qsize():
        done.wait(0.001)
    handler.emit(record)
    handler.close()
    os.close(writer)
    draining.join()
    os.close(reader)
    told = [json.loads(line) for line in received.splitlines()]
    assert 0 < len(told) < 20_001
    assert sum(e.get("num_dropped_lines", 0) for e in told) + len(told) == 20_001


def test_a_full_disk_loses_lines_and_tells_how_many_when_it_has_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room, written = [1000], bytearray()

    def write(descriptor: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = data[: room[0]]
        room[0] -= len(part)
        written.extend(part)
        return len(part)

    monkeypatch.setattr("multispin.net.logs.os.write", write)
    handler = BackgroundHandler()
    handler.setFormatter(JsonFormatter())
    record = logging.LogRecord("multispin.events", logging.INFO, "", 0, "x" * 200, (), None)
    for number in range(100):
        if number == 50:
            wait_for(lambda: not handler._lines.qsize() and handler._num_dropped > 40)
            room[0] = 100  # too little: what tells of the first gap is lost, too
        handler.handle(record)
    wait_for(lambda: not handler._lines.qsize() and handler._num_dropped > 90)
    room[0] = 10_000
    handler.handle(record)
    handler.close()
    whole = []
    for line in written.splitlines():
        with contextlib.suppress(ValueError):
            whole.append(json.loads(line))
    assert 3 <= len(whole) < 10
    assert sum(e.get("num_dropped_lines", 0) for e in whole) + len(whole) == 101


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(5000):
        if condition():
            return
        time.sleep(0.001)
    raise AssertionError("it never came to that")


def test_frames_are_told_the_same_at_both_ends() -> None:
    """The log of a device names what the log of the server names."""
    logs: dict[str, list[tuple]] = {"server": [], "device": []}

    class Noting(EventLog):
        def __init__(self, side: str) -> None:
            super().__init__()
            self.side = side

        def up(self, device: int, frame: frames.FromDevice) -> None:
            logs[self.side].append((device, type(frame).__name__))

        def down(self, device: int, frame: frames.FromServer) -> None:
            logs[self.side].append((device, type(frame).__name__))

    async def scene(server: EdgeServer) -> None:
        async with device(server, "lookup", [Noting("device")]) as it:
            await text_of(it, wanted())

    play(scene, mode="stop-and-wait", observers=[Noting("server")])
    at_server = [entry for entry in logs["server"] if entry[1] != "Welcome"]
    assert at_server == logs["device"]
    assert log.name.startswith("multispin")


def test_the_documentation_names_every_event() -> None:
    root = Path(__file__).parents[2]
    table = re.findall(
        r"(?m)^\| (`\w+`(?:, `\w+`)*) \| (?:info|warning|debug|error)", text_of_docs(root)
    )
    documented = {name for names in table for name in re.findall(r"\w+", names)}
    net = root / "src" / "multispin" / "net"
    told = set(re.findall(r'(?:_tell|_end)\(\s*"(\w+)"', (net / "logs.py").read_text()))
    for of_directory in ("watches.py", "watching.py"):
        told |= set(re.findall(r'log\.\w+\(\s*"(\w+)', (net / of_directory).read_text()))
    assert documented == told


def text_of_docs(root: Path) -> str:
    return (root / "docs" / "operating.md").read_text()
