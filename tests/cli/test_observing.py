"""Log and traces of a server and a device agent, as their processes write them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECRET = "the moon landing of 1969"
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = f"00-{TRACE}-b7ad6b7169203331-01"


@contextmanager
def started(errors: Path, *arguments: str, **environment: str) -> Iterator[str]:
    """The address; its standard error goes to the file. It is ended as an operator would."""
    with (
        errors.open("wb") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", "multispin", *arguments, "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, **environment},
        ) as process,
    ):
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address, errors.read_text()
            yield address
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()


def complete(address: str) -> str:
    body = {"model": "ngram", "prompt": SECRET, "max_tokens": 32, "temperature": 0.8, "seed": 7}
    request = urllib.request.Request(
        f"http://{address}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", "traceparent": CALLER},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        text: str = json.load(answer)["choices"][0]["text"]
        return text


def test_every_line_of_the_json_log_is_one_object_without_text(tmp_path: Path) -> None:
    files = {side: tmp_path / side for side in ("server", "device")}
    log = ("--log-format", "json", "--log-level", "debug")
    with started(files["server"], "serve", "--target", "ngram", *log) as server:
        draft = ("device", "--server", server, "--draft", "ngram")
        with started(files["device"], *draft, *log) as device:
            texts = [complete(device), complete(server)]
    told = {}
    for side, file in files.items():
        told[side] = [json.loads(line) for line in file.read_text().splitlines()]
        for secret in (SECRET, "moon", *texts):
            assert secret not in file.read_text()
    for side, number in (("server", 2), ("device", 1)):
        for event in ("opened", "finished"):
            found = [e for e in told[side] if e["event"] == event]
            assert len(found) == number
            assert all({"device", "session", "epoch"} <= set(e) for e in found)
        assert {e["level"] for e in told[side]} == {"debug", "info"}
    # The same verdicts at both ends of the link.
    fields = ("session", "epoch", "start", "num_draft", "num_accepted", "num_committed")
    verdicts = {
        side: [[e[name] for name in fields] for e in told[side] if e["event"] == "verdict"]
        for side in told
    }
    assert verdicts["device"] == verdicts["server"][: len(verdicts["device"])] != []


def spans(file: Path) -> list[dict[str, Any]]:
    """The console exporter's objects, one after the other."""
    text, found = file.read_text(), []
    decoder = json.JSONDecoder()
    at = text.find("{")
    while at >= 0:
        span, end = decoder.raw_decode(text, at)
        found.append(span)
        at = text.find("{", end)
    return found


def test_a_request_is_one_trace_from_its_client_to_the_server(tmp_path: Path) -> None:
    files = {side: tmp_path / side for side in ("server", "device")}
    console = {"OTEL_TRACES_EXPORTER": "console"}
    quiet = ("--log-level", "warning")
    with started(files["server"], "serve", "--target", "ngram", *quiet, **console) as server:
        draft = ("device", "--server", server, "--draft", "ngram")
        with started(files["device"], *draft, *quiet, **console) as device:
            text = complete(device)
    found = {side: spans(file) for side, file in files.items()}
    assert {s["name"] for s in found["device"]} == {"session", "draft", "upload"}
    assert {s["name"] for s in found["server"]} == {"session", "queue", "verify", "verdict"}
    assert {s["context"]["trace_id"] for side in found for s in found[side]} == {f"0x{TRACE}"}
    [near] = [s for s in found["device"] if s["name"] == "session"]
    [far] = [s for s in found["server"] if s["name"] == "session"]
    assert near["parent_id"] == "0xb7ad6b7169203331"
    assert far["parent_id"] == near["context"]["span_id"]
    services = [s["resource"]["attributes"]["service.name"] for s in (near, far)]
    assert services == ["multispin-device", "multispin-server"]
    for file in files.values():
        assert "moon" not in file.read_text() and text not in file.read_text()
