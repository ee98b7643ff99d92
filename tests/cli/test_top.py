"""`multispin top`: what a frame says, and the command in a pseudo-terminal with real processes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest
from rich.console import Console

from multispin.api.cell_state import Cell, CellDevice, CellReplica, Passes, WithoutDrafter
from multispin.cli.top import frame, read_cell
from multispin.errors import PeerError
from tests.cli.conftest import Agents, agent
from tests.cli.pty_terminal import CTRL_C, terminal

DEVICE = CellDevice(3, "qwen-tiny", 2, 6, 9600, 0.25, 12.34, 0.815, 400, 326, 512)
CELL = Cell(
    target="qwen-large",
    mode="window",
    policy="heterogeneous",
    num_sessions=5,
    clock_s=0.0,
    counters={"num_errors": 1},
    goodput_tokens_per_s=47.11,
    acceptance=0.734,
    passes=Passes(rows_mean=11.5, seconds_mean=0.0812, busy_share=0.93),
    devices=[DEVICE],
    without_drafter=WithoutDrafter(num_sessions=3, goodput_tokens_per_s=22.0),
)


def shown(cell: Cell, *arguments: object, width: int = 110) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(frame(cell, "127.0.0.1:8600", *arguments))  # type: ignore[arg-type]
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(text: str, device: str) -> list[str]:
    [line] = [line for line in text.splitlines() if line.startswith(f"│ {device:>6} │")]
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_a_frame_says_what_the_cell_does() -> None:
    text = shown(CELL)
    for part in (
        *("127.0.0.1:8600", "qwen-large", "window", "heterogeneous", "5 sessions, 3 of them"),
        *("1 device;", "47.1 tokens/s", "accepted 73%", "11.5 rows in 81.2 ms", "93% of the time"),
        "1 error so far",
    ):
        assert part in text
    assert row(text, "3") == ["3", "qwen-tiny", "2", "6", "25%", "82%", "12.3", "512"]


def test_what_is_not_known_is_no_zero() -> None:
    device = msgspec.structs.replace(DEVICE, bandwidth_share=None, acceptance=None)
    text = shown(msgspec.structs.replace(CELL, devices=[device], acceptance=None, policy=None))
    assert row(text, "3")[4:6] == ["–", "–"]
    assert "accepted –" in text and "each device decides" in text


def test_devices_choose_their_names_and_nothing_else() -> None:
    device = msgspec.structs.replace(DEVICE, drafter="\x1b[2J[red]x[/red]\n\x07")
    text = shown(msgspec.structs.replace(CELL, devices=[device], target="\x1b]0;t\x07"))
    assert "\x1b" not in text and "\x07" not in text
    assert "[red]x[/red]" in text  # rich's markup is text, too


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_more_devices_than_lines_are_counted(width: int) -> None:
    devices = [msgspec.structs.replace(DEVICE, device=number) for number in range(50)]
    text = shown(msgspec.structs.replace(CELL, devices=devices), "", 10, width=width)
    assert "and 40 more devices" in " ".join(text.split())
    assert all(len(line) <= width for line in text.splitlines())


def test_trouble_is_shown_beside_the_last_frame() -> None:
    text = shown(CELL, "nobody answers")
    assert "no news: nobody answers" in text and "qwen-large" in text


def test_an_answer_of_another_version_is_named() -> None:
    for data in (b"{}", b"not json", msgspec.json.encode({"target": 1})):
        with pytest.raises(PeerError, match="same version"):
            read_cell(data)
    assert read_cell(msgspec.json.encode(CELL)) == CELL


REPLICAS = [
    CellReplica("chat-0", "chat", "10.0.0.1:8600", "ok", 5, 8, 33.3, 2, 0.0123, 0.08, 4096),
    CellReplica("chat-1", "chat", "10.0.0.2:8600", "down"),
]


def test_of_a_directory_each_replica_has_a_line_and_devices_are_told_by_it() -> None:
    devices = [msgspec.structs.replace(DEVICE, replica=name) for name in ("chat-0", "chat-1")]
    text = shown(msgspec.structs.replace(CELL, replicas=REPLICAS, devices=devices))
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines()]
    assert ["chat-0", "chat", "ok", "5 of 8", "2", "12.3 ms", "33.3", "4096"] in lines
    assert ["chat-1", "chat", "down", "0 of 0", "0", "–", "0.0", "0"] in lines
    assert {line[0] for line in lines} >= {"chat-0 3", "chat-1 3"}


# --- the command ---------------------------------------------------------------------------------


@contextmanager
def writing(address: str) -> Iterator[None]:
    """Somebody has texts written meanwhile."""
    stop = threading.Event()

    def write() -> None:
        body = {"model": "ngram", "prompt": "the server ", "max_tokens": 400}
        request = urllib.request.Request(
            f"http://{address}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        while not stop.is_set():
            urllib.request.urlopen(request, timeout=30).read()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def top(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "multispin", "top", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_once_prints_a_frame_for_scripts(agents: Agents) -> None:
    with writing(agents.device):
        time.sleep(1.0)
        done = top("--server", agents.server, "--once")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "target ngram" in done.stdout
    _, drafter, _, _, share, accepted, goodput, tokens = row(done.stdout, "0")
    assert drafter == "ngram" and share == "–"
    assert accepted.endswith("%") and float(goodput) > 0 and int(tokens) > 0


@pytest.mark.parametrize("key", ["q", CTRL_C])
def test_live_frames_until_a_key_and_the_terminal_is_as_before(agents: Agents, key: str) -> None:
    with writing(agents.device), terminal("top", "--server", agents.server) as it:
        before = it.settings
        for _ in range(3):
            it.expect("target ngram")
            it.expect("ngram")
        assert it.raw.count("\x1b[?1049h") == 1  # the other screen
        it.type(key)
        assert it.wait() == 0
        assert it.raw.count("\x1b[?1049l") == 1
        assert it.raw.endswith("\x1b[?25h") or "\x1b[?25h" in it.raw[-40:]  # the cursor is back
        assert "Traceback" not in it.raw
        assert before[3] == it.settings[3]


def test_a_server_that_goes_away_is_waited_for() -> None:
    with (
        agent("serve", "--target", "ngram", "--port", "0") as (process, address),
        terminal("top", "--server", address) as it,
    ):
        it.expect("target ngram")
        process.kill()
        it.expect("no news: --server")
        it.type("q")
        assert it.wait() == 0


def test_a_dumb_terminal_gets_frames_without_escapes(agents: Agents) -> None:
    with terminal("top", "--server", agents.server, term="dumb") as it:
        for _ in range(2):
            it.expect("target ngram")
        it.type(CTRL_C)
        assert it.wait() == 0
        assert "\x1b" not in it.raw


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--server", "127.0.0.1:1"), ["--server", "127.0.0.1:1", "multispin serve"]),
        (("--server", "127.0.0.1"), ["--server", "HOST:PORT"]),
    ],
)
def test_nobody_there_is_one_line(arguments: tuple[str, ...], parts: list[str]) -> None:
    done = top(*arguments)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    for part in parts:
        assert part in line


def test_a_device_has_no_cell(agents: Agents) -> None:
    done = top("--server", agents.device, "--once")
    assert done.returncode != 0
    assert "/api/cell" in done.stderr and "Traceback" not in done.stderr
