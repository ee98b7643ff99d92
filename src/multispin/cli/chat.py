"""`multispin chat`: a conversation through a device agent on this machine."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multispin.cli import options
from multispin.cli.terminal import dim, printable
from multispin.errors import MultispinError
from multispin.types import SamplingParams

if TYPE_CHECKING:
    from multispin.cli.endpoint import HttpEndpoint

PROMPT = "> "
HELP = """/clear   begin anew
/quit    end, as Ctrl-D does
Ctrl-C   stop the answer"""


def chat(
    device: Annotated[
        str, typer.Option(help="HOST:PORT of a device agent (or of a server).")
    ] = f"127.0.0.1:{options.DEFAULT_AGENT_PORT}",
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 1024,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = None,
    token: options.Token = None,
    token_file: options.TokenFile = None,
    ca: options.Ca = None,
    cert: options.Cert = None,
    key: options.Key = None,
) -> None:
    """Chat with the large model through a device agent; without a terminal, a line is a message."""
    SamplingParams(temperature).validate()
    options.check_writing(0, max_tokens, seed)

    from multispin.cli.endpoint import HttpEndpoint

    endpoint = HttpEndpoint(
        options.address(device, token, token_file, ca, cert, key, "--device"),
        "--device",
        f"start one with `multispin device --port {options.DEFAULT_AGENT_PORT}`, or name its port",
    )
    model = json.loads(endpoint.get("/v1/models"))["data"][0]
    settings = {"model": model["id"], "max_tokens": max_tokens, "temperature": temperature}
    if seed is not None:
        settings["seed"] = seed
    conversation = Conversation(endpoint, settings, system)
    if sys.stdin.isatty() and sys.stdout.isatty():
        print(f"{printable(model['id'])}, drafted for by {printable(model['drafter'])}; /help")
        _talk(conversation)
    else:
        _answer_lines(conversation)


class Conversation:
    """The messages so far. The endpoint remembers none."""

    def __init__(
        self, endpoint: HttpEndpoint, settings: dict[str, Any], system: str | None
    ) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._first = [{"role": "system", "content": system}] if system else []
        self.messages = list(self._first)
        self.usage: dict[str, Any] = {}  # of the last answer, and why it ended
        self.finish: str | None = None

    def clear(self) -> None:
        self.messages = list(self._first)

    def say(self, text: str) -> Generator[str]:
        """The answer, in pieces. What there is of it when it is stopped counts as answer."""
        asked = {"role": "user", "content": options.utf8("message", text)}
        answer = ""
        self.usage, self.finish = {}, None
        try:
            with contextlib.closing(self._events([*self.messages, asked])) as events:
                for event in events:
                    self.usage = event.get("usage") or {}
                    for choice in event["choices"]:
                        self.finish = choice["finish_reason"]
                        piece = choice["delta"].get("content") or ""
                        answer += piece
                        yield piece
        finally:
            if answer or self.finish:
                self.messages += [asked, {"role": "assistant", "content": answer}]

    def _events(self, messages: list[dict[str, str]]) -> Generator[dict[str, Any]]:
        return self._endpoint.events(
            "/v1/chat/completions",
            {
                **self._settings,
                "messages": messages,
                "stream": True,
                "stream_options": {"include_usage": True},
            },
        )


# --- at a terminal -------------------------------------------------------------------------------


def _talk(conversation: Conversation) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() its editing and its history
    while True:
        try:
            text = input(PROMPT).strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print(f"\n{dim('Ctrl-D or /quit ends the chat')}")
            continue
        match text:
            case "":
                pass
            case "/quit":
                return
            case "/clear":
                conversation.clear()
                print(dim("forgotten"))
            case "/help":
                print(HELP)
            case _ if text.startswith("/") and " " not in text:
                print(f"no such command: {text}\n{HELP}")
            case _:
                _answer(conversation, text)


def _answer(conversation: Conversation, text: str) -> None:
    """Show the answer as it comes. Whatever goes wrong with it, the chat goes on."""
    began = time.monotonic()
    answer = conversation.say(text)
    try:
        for piece in answer:
            print(printable(piece), end="", flush=True)
        note = _note(conversation, time.monotonic() - began)
    except KeyboardInterrupt:
        note = "stopped"
    except MultispinError as error:
        note = f"error: {error}"
        if error.code == "context_overflow":
            note += "; /clear begins anew"
    finally:
        answer.close()  # ends the session, if it is not over
    print(f"\n{dim(f'[{note}]')}")


def _note(conversation: Conversation, elapsed_s: float) -> str:
    usage = conversation.usage
    num_tokens = usage.get("completion_tokens", 0)
    drafted = usage.get("completion_tokens_details", {}).get("accepted_prediction_tokens", 0)
    note = f"{num_tokens} tokens in {elapsed_s:.1f} s, {drafted} of them drafted"
    if conversation.finish == "length":
        note += "; cut there: --max-tokens, or the model's context"
    return note


# --- without one ---------------------------------------------------------------------------------


def _answer_lines(conversation: Conversation) -> None:
    """A message a line on standard input; the answers alone on standard output."""
    show = printable if sys.stdout.isatty() else str
    for line in sys.stdin:
        match line.strip():
            case "":
                pass
            case "/quit":
                return
            case "/clear":
                conversation.clear()
            case text:
                for piece in conversation.say(text):
                    print(show(piece), end="", flush=True)
                print(flush=True)
