"""`multispin chat`, typed into a real pseudo-terminal and fed by a pipe, with real processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator

import pytest

from multispin.cli.chat import Conversation
from multispin.cli.terminal import printable
from multispin.errors import PeerError
from tests.cli.conftest import Agents, agent
from tests.cli.pty_terminal import CTRL_C, CTRL_D, UP, Terminal, terminal

CHAT = ("chat", "--max-tokens", "24", "--seed", "5", "--temperature", "0.7")
PROMPT = "\n> "


def ask(address: str, *contents: str) -> str:
    """What the endpoint answers to these messages, user and assistant in turn: the oracle."""
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": content}
        for i, content in enumerate(contents)
    ]
    body = {"model": "ngram", "messages": messages, "max_tokens": 24, "seed": 5, "temperature": 0.7}
    request = urllib.request.Request(
        f"http://{address}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        content: str = json.load(answer)["choices"][0]["message"]["content"]
        return content


def answer_to(it: Terminal, text: str) -> str:
    it.type(text + "\r")
    it.expect(text + "\n")  # its echo
    answer = it.expect("\n[")
    it.expect(PROMPT)
    return answer


def num_sessions(server: str) -> int:
    with urllib.request.urlopen(f"http://{server}/api/cell", timeout=30) as answer:
        count: int = json.load(answer)["num_sessions"]
        return count


def piped(address: str, lines: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "multispin", *CHAT, "--device", address, *arguments],
        input=lines,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_conversation_remembers_until_it_is_cleared(agents: Agents) -> None:
    first = ask(agents.device, "hello there")
    second = ask(agents.device, "hello there", first, "and then")
    assert second != ask(agents.device, "and then")
    with terminal(*CHAT, "--device", agents.device) as it:
        it.expect("ngram, drafted for by ngram")
        it.expect(PROMPT)
        assert answer_to(it, "hello there") == first
        assert answer_to(it, "and then") == second
        it.type("/clear\r")
        it.expect(PROMPT)
        assert answer_to(it, "and then") == ask(agents.device, "and then")
        it.type("/clear\r")
        it.expect(PROMPT)
        for _ in range(5):  # back to the first line that was typed
            it.type(UP)
        it.type("\r")
        assert first in it.expect(PROMPT)
        it.type(CTRL_D)
        assert it.wait() == 0


def test_what_is_drafted_here_is_told(agents: Agents) -> None:
    with terminal(*CHAT, "--device", agents.device) as it:
        it.expect(PROMPT)
        it.type("the server drafts and the server\r")
        it.expect("[24 tokens in ")
        assert int(it.expect(" of them drafted").split(", ")[1]) > 0
        it.type("/quit\r")
        assert it.wait() == 0


def test_ctrl_c_stops_the_answer_and_not_the_program(agents: Agents) -> None:
    endless = ("chat", "--max-tokens", "60000", "--device", agents.device)
    with terminal(*endless) as it:
        it.expect(PROMPT)
        for _ in range(2):  # the second goes on after the first, as far as it came
            it.type("tell me everything\r")
            it.expect("the server")
            assert num_sessions(agents.server) == 1
            it.type(CTRL_C)
            it.expect("[stopped]")
            it.expect(PROMPT)
            deadline = time.monotonic() + 10
            while num_sessions(agents.server):
                assert time.monotonic() < deadline, "the session goes on"
                time.sleep(0.01)
        it.type("half a li" + CTRL_C)
        it.expect("Ctrl-D or /quit ends the chat")
        it.type("/help\r")
        it.expect("stop the answer")
        it.type("/exit\r")
        it.expect("no such command: /exit")
        it.type(CTRL_D)
        assert it.wait() == 0


def test_a_dumb_terminal_gets_nothing_but_text(agents: Agents) -> None:
    with terminal(*CHAT, "--device", agents.device, term="dumb") as it:
        it.expect(PROMPT)
        assert answer_to(it, "hello there") == ask(agents.device, "hello there")
        it.type(CTRL_D)
        assert it.wait() == 0
        assert "\x1b" not in it.raw


def test_without_a_terminal_a_line_is_a_message(agents: Agents) -> None:
    first = ask(agents.device, "hello there")
    second = ask(agents.device, "hello there", first, "and then")
    done = piped(agents.device, "hello there\n\nand then\n/clear\nhello there\n/quit\nnever said\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{first}\n{second}\n{first}\n"


def test_it_speaks_with_a_server_as_well(agents: Agents) -> None:
    done = piped(agents.server, "hello there")
    assert done.stdout == ask(agents.device, "hello there") + "\n"


class Echo:
    """An endpoint that answers with what was said last, and fails on demand."""

    def __init__(self) -> None:
        self.bodies: list[dict] = []

    def events(self, path: str, body: dict) -> Generator[dict]:
        self.bodies.append(body)
        for letter in body["messages"][-1]["content"]:
            if letter == "!":
                raise PeerError("gone", code="unreachable")
            yield {"choices": [{"delta": {"content": letter}, "finish_reason": None}]}
        yield {"choices": [{"delta": {}, "finish_reason": "stop"}]}
        yield {"choices": [], "usage": {"completion_tokens": 2}}


def test_messages_go_in_order_and_what_was_never_answered_is_forgotten() -> None:
    echo = Echo()
    conversation = Conversation(echo, {"model": "m"}, "be brief")  # type: ignore[arg-type]
    assert "".join(conversation.say("ab")) == "ab"
    assert conversation.usage == {"completion_tokens": 2}
    with pytest.raises(PeerError):
        list(conversation.say("!"))  # no answer
    with pytest.raises(PeerError):
        list(conversation.say("cd!"))  # half of one
    stopped = conversation.say("efg")
    assert next(stopped) == "e"
    stopped.close()
    said = [(m["role"], m["content"]) for m in conversation.messages]
    assert said == [
        ("system", "be brief"),
        *(("user", "ab"), ("assistant", "ab")),
        *(("user", "cd!"), ("assistant", "cd")),
        *(("user", "efg"), ("assistant", "e")),
    ]
    assert echo.bodies[-1]["messages"] == conversation.messages[:-1]
    assert echo.bodies[-1]["model"] == "m" and echo.bodies[-1]["stream"] is True
    conversation.clear()
    assert conversation.messages == conversation.messages[:1] == [said_of("system", "be brief")]


def said_of(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_a_text_that_no_longer_fits_is_named_and_the_chat_goes_on(agents: Agents) -> None:
    with terminal(*CHAT, "--device", agents.device, "--system", "x" * 70_000) as it:
        it.expect(PROMPT)
        it.type("hello\r")
        assert "65536" in it.expect("/clear begins anew]")
        it.expect(PROMPT)
        it.type(CTRL_D)
        assert it.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (("--device", "127.0.0.1:1"), 2, ["--device", "127.0.0.1:1", "multispin device --port"]),
        (("--device", "nonsense"), 2, ["--device", "nonsense", "HOST:PORT"]),
        (("--device", "127.0.0.1:99999"), 2, ["--device", "99999", "HOST:PORT"]),
        (("--temperature", "-1"), 2, ["temperature", "-1"]),
        (("--max-tokens", "0"), 2, ["--max-tokens", "at least 1"]),
        (("--system", "x" * 70_000), 2, ["65536", "shorten"]),
    ],
)
def test_what_is_wrong_is_one_line(
    agents: Agents, arguments: tuple[str, ...], code: int, parts: list[str]
) -> None:
    done = piped(agents.device, "hello\n", *arguments)
    assert done.returncode == code
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    for part in parts:
        assert part in line


def test_a_device_that_dies_costs_the_answer_and_not_the_chat(agents: Agents) -> None:
    started = agent("device", "--server", agents.server, "--draft", "none", "--port", "0")
    with (
        started as (process, address),
        terminal("chat", "--max-tokens", "60000", "--device", address) as it,
    ):
        it.expect(PROMPT)
        it.type("tell me everything\r")
        it.expect("the server")
        process.kill()
        it.expect("[error: ")
        it.expect(PROMPT)
        it.type("are you there?\r")
        assert "nobody answers there" in it.expect(PROMPT)
        it.type(CTRL_D)
        assert it.wait() == 0


def test_a_model_gives_no_orders_to_the_terminal() -> None:
    assert printable("a\tb\nc\r\n") == "a\tb\nc\n"
    assert printable("\x1b]0;owned\x07 \x9b2J \x7f") == "�]0;owned� �2J �"
    assert printable("ünïcode 🙂") == "ünïcode 🙂"
