"""The log: a line for whatever happens, as JSON or for people. Never a word of anybody's text.

Our own events name their fields. Other libraries' messages may quote what they were given, so of
these the JSON tells the template alone, and of an exception its type and where it was raised.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

from multispin.net.observer import Observer
from multispin.net.telemetry import MAX_NAME, NO_DRAFTER
from multispin.wire.frames import (
    Close,
    Draft,
    Error,
    FromDevice,
    FromServer,
    Hello,
    Open,
    Opened,
    Redirect,
    Resume,
    Verdict,
)

LogFormat: TypeAlias = Literal["text", "json"]
LogLevel: TypeAlias = Literal["debug", "info", "warning"]

MAX_WAITING = 4096  # lines for a reader that is slow; more are dropped
DRAIN_S = 1.0  # at the end the reader gets so long
STDERR = 2

# Devices and servers name things as they like: no line of theirs, no orders to a terminal.
_CONTROLS = dict.fromkeys([*range(32), *range(127, 160)], "\ufffd")

log = logging.getLogger("multispin.events")


class _Text:
    """A session that goes on: where it stands, for the lines that no frame says it in."""

    def __init__(self, opened_at: float) -> None:
        self.opened_at = opened_at
        self.epoch = 0
        self.length = 0  # so far, the prompt included
        self.num_tokens = 0  # without it


class EventLog(Observer):
    """Sessions at level info, with device, session and epoch; at debug drafts and verdicts, too."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._texts: dict[tuple[int, int], _Text] = {}
        self._devices: set[int] = set()

    def joined(self, device: int, hello: Hello) -> None:
        # Each request to the server's own endpoint has a link, which is no news.
        if hello.drafter != NO_DRAFTER:
            self._devices.add(device)
            _tell("joined", device, drafter=hello.drafter[:MAX_NAME])

    def left(self, device: int) -> None:
        for key in [key for key in self._texts if key[0] == device]:
            self._end("lost", *key)
        if device in self._devices:
            self._devices.remove(device)
            _tell("left", device)

    def up(self, device: int, frame: FromDevice) -> None:
        match frame:
            case Draft(session=session, epoch=epoch, start=start):
                if log.isEnabledFor(logging.DEBUG):
                    _tell("draft", device, session, epoch, logging.DEBUG, start=start)
            case Open(session=session) | Resume(session=session):
                self._texts.setdefault((device, session), _Text(self._clock()))
            case Close(session=session):
                self._end("closed", device, session)

    def down(self, device: int, frame: FromServer) -> None:
        match frame:
            case Verdict():
                self._judged(device, frame)
            case Opened(session=session, draft_length=draft_length, prompt_ids=b""):
                _tell("resumed", device, session, 0, draft_length=draft_length)
            case Opened(session=session, draft_length=draft_length):
                _tell("opened", device, session, 0, draft_length=draft_length)
            case Error(session=int(session), code=code):
                self._end("refused", device, session, logging.WARNING, code=code)
            case Redirect(session=session, server=server):
                self._end("redirected", device, session, server=server)
            case Error(code=code):
                _tell("link_refused", device, level=logging.WARNING, code=code)

    def _judged(self, device: int, verdict: Verdict) -> None:
        text = self._texts.get((device, verdict.session))
        if text is not None and verdict.start >= text.length:
            text.epoch = verdict.epoch
            text.length = verdict.start + verdict.num_committed
            text.num_tokens += verdict.num_committed
        if log.isEnabledFor(logging.DEBUG):
            fields = ("start", "num_draft", "num_accepted", "num_committed", "draft_length")
            counts = {name: getattr(verdict, name) for name in fields}
            _tell("verdict", device, verdict.session, verdict.epoch, logging.DEBUG, **counts)
        if verdict.finish:
            self._end("finished", device, verdict.session, finish=verdict.finish)

    def _end(
        self, event: str, device: int, session: int, level: int = logging.INFO, **fields: object
    ) -> None:
        text = self._texts.pop((device, session), None)
        if text is not None:
            fields["num_tokens"] = text.num_tokens
            fields["elapsed_s"] = round(self._clock() - text.opened_at, 4)
        elif event == "closed":
            return  # it had ended before
        _tell(event, device, session, text.epoch if text else None, level, **fields)


def _tell(
    event: str,
    device: int,
    session: int | None = None,
    epoch: int | None = None,
    level: int = logging.INFO,
    **fields: object,
) -> None:
    where = {"device": device, "session": session, "epoch": epoch}
    known = {name: value for name, value in where.items() if value is not None}
    log.log(level, event, extra={"fields": known | fields})


# --- lines ---------------------------------------------------------------------------------------


class JsonFormatter(logging.Formatter):
    """One JSON object: ``time``, ``level``, ``event``, and the fields of the event."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
        }
        if record.name.startswith("multispin"):
            line["event"] = record.getMessage()
        else:
            line["event"] = record.msg.partition("\n")[0] if isinstance(record.msg, str) else "log"
            line["logger"] = record.name
        line |= getattr(record, "fields", {})
        if record.exc_info and (error := record.exc_info[1]) is not None:
            line["exception"] = type(error).__name__
            line["raised"] = [
                f"{frame.filename}:{frame.lineno}"
                for frame in traceback.extract_tb(error.__traceback__)
            ]
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """For people: time, level, event and its fields, as ``name=value``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        fields = getattr(record, "fields", {})
        line = " ".join([super().formatMessage(record), *(f"{k}={v}" for k, v in fields.items())])
        return line.translate(_CONTROLS)


class BackgroundHandler(logging.Handler):
    """Writes to a file descriptor in a thread of its own: whoever reads the log slowly, or not at
    all, holds up no batch, nor does a full disk. What finds no room is dropped, and counted in the
    next line that does."""

    def __init__(self, descriptor: int = STDERR) -> None:
        super().__init__()
        self._descriptor = descriptor
        # Lines, each with the number of dropped ones that it tells.
        self._lines: queue.Queue[tuple[str, int] | None] = queue.Queue(MAX_WAITING)
        self._num_dropped = 0
        self._writer = threading.Thread(target=self._write, name="log", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._num_dropped:
                fields = {**getattr(record, "fields", {}), "num_dropped_lines": self._num_dropped}
                record = copy.copy(record)  # which is not ours alone
                record.fields = fields
            self._lines.put_nowait((self.format(record), self._num_dropped))
            self._num_dropped = 0
        except queue.Full:
            self._num_dropped += 1

    def close(self) -> None:
        """Give the reader a moment for what waits."""
        try:
            self._lines.put(None, timeout=DRAIN_S)
            self._writer.join(DRAIN_S)
        except queue.Full:
            pass
        super().close()

    def _write(self) -> None:
        begin = b""
        while (waiting := self._lines.get()) is not None:
            line, num_dropped = waiting
            try:
                self._write_all(begin + line.encode(errors="replace") + b"\n")
                begin = b""
            except BrokenPipeError:
                return  # nobody reads any more
            except OSError:  # a full disk, which may have room again
                begin = b"\n"  # a part of the line may be there
                self.acquire()
                self._num_dropped += 1 + num_dropped
                self.release()

    def _write_all(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._descriptor, data) :]


def log_to_stderr(form: LogFormat, level: LogLevel) -> None:
    """Our own events from ``level`` on, warnings of everybody else."""
    handler = BackgroundHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("multispin").setLevel(level.upper())
