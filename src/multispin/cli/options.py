"""Options that several commands share, and what they become."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, TypeVar, get_args

import typer

from multispin.errors import BadInput
from multispin.types import AcceptanceRule, SamplingParams

if TYPE_CHECKING:
    from multispin.net.address import Address
    from multispin.wire.frames import Wish

C = TypeVar("C", bound=str)

DEFAULT_PORT = 8600
DEFAULT_AGENT_PORT = 8601
TOKEN_VARIABLE = "MULTISPIN_TOKEN"

Server = Annotated[
    str,
    typer.Option(help="HOST:PORT of the edge server; off loopback over TLS, unless http://…"),
]
Token = Annotated[
    str | None,
    typer.Option(
        metavar="TOKEN",
        envvar=TOKEN_VARIABLE,
        hide_input=True,
        help="Access token. Others on this machine see what is on its command line.",
    ),
]
TokenFile = Annotated[str | None, typer.Option(metavar="FILE", help="File that has the token.")]
Ca = Annotated[
    str | None,
    typer.Option(metavar="FILE.pem", help="Trust servers of this CA, not the system's."),
]
Cert = Annotated[
    str | None, typer.Option(metavar="FILE.pem", help="Certificate to show to the server.")
]
Key = Annotated[str | None, typer.Option(metavar="FILE.key", help="And its key.")]
ClientCa = Annotated[
    str | None,
    typer.Option(metavar="FILE.pem", help="Let in only who has a certificate of this CA, too."),
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Serve off loopback without TLS or tokens.")
]
Cell = Annotated[
    str, typer.Option(metavar="NAME", help="The radio site whose uplink this device shares.")
]
Target = Annotated[
    str,
    typer.Option(metavar="NAME", help="The target to be served by, where a directory has several."),
]
MaxSPerToken = Annotated[
    float, typer.Option(help="With a directory: a target of at most so many seconds per token.")
]
MaxJoulesPerToken = Annotated[float, typer.Option(help="The same with its energy per token.")]
MaxCostPerToken = Annotated[float, typer.Option(help="The same with its price per token.")]
MinQuality = Annotated[int, typer.Option(help="The same with its quality class, at least.")]
Draft = Annotated[
    str,
    typer.Option(
        help="Drafter: catalog name, GGUF path, hf:owner/repo/file, lookup, ngram, "
        "replay:FILE, none."
    ),
]
_PROMPTS_HELP = "Text file, a prompt a line, or .jsonl with 'prompt' or 'turns'; - is stdin."
Prompts = Annotated[str, typer.Option(help=_PROMPTS_HELP)]
OptionalPrompts = Annotated[str | None, typer.Option("--prompts", help=_PROMPTS_HELP)]
DraftLength = Annotated[int, typer.Option(help="Tokens per draft; 0 leaves all to the server.")]
MaxTokens = Annotated[int, typer.Option(help="Most tokens to write.")]
Temperature = Annotated[float, typer.Option(help="0 takes the most likely token.")]
TopP = Annotated[float, typer.Option(help="Sample among the most likely tokens of this mass.")]
TopK = Annotated[int, typer.Option(help="Sample among so many tokens; 0: all.")]
MinP = Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest one's.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same text; random by default.")]
Rule = Annotated[
    str | None,
    typer.Option(help="greedy, coupled (the default above temperature 0) or rejection."),
]
Threads = Annotated[int | None, typer.Option(help="Threads of the model; all cores by default.")]
GpuLayers = Annotated[int, typer.Option(help="Layers kept on a GPU, -1: all (native builds).")]
LogFormat = Annotated[
    str, typer.Option(help="Of the log on standard error: text, or json for a JSON object a line.")
]
LogLevel = Annotated[
    str,
    typer.Option(
        help="warning, info (the default: sessions that begin and end) or debug (drafts and "
        "verdicts, too)."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def address(
    server: str,
    token: str | None,
    token_file: str | None,
    ca: str | None,
    cert: str | None,
    key: str | None,
    option: str = "--server",
) -> Address:
    """Where the server is, and what shows it who we are."""
    from multispin.net.address import parse_address

    if token and token_file:
        raise BadInput("--token-file", token_file, "state it or --token, not both")
    return parse_address(
        server,
        option,
        token=token or "",
        token_file=token_file or "",
        ca=ca,
        cert=cert,
        key=key,
    )


def wish(
    target: str,
    max_s_per_token: float,
    max_joules_per_token: float,
    max_cost_per_token: float,
    min_quality: int,
) -> Wish:
    """What is asked of the target; 0 asks for nothing."""
    from multispin.wire.frames import Wish

    wish = Wish(
        utf8("--target", target),
        max_s_per_token,
        max_joules_per_token,
        max_cost_per_token,
        min_quality,
    )
    for name in wish.__struct_fields__[1:]:
        value = getattr(wish, name)
        if not 0 <= value < 2**31:
            raise BadInput(f"--{name.replace('_', '-')}", value, "must be 0 or more")
    return wish


def num_threads(threads: int | None) -> int:
    if threads is not None and threads < 1:
        raise BadInput("--threads", threads, "must be at least 1")
    return threads or os.cpu_count() or 1


def acceptance_rule(name: str | None, params: SamplingParams) -> AcceptanceRule:
    """The rule asked for; at temperature 0 every rule is greedy."""
    if name is None:
        return "greedy" if params.temperature == 0 else "coupled"
    choices: tuple[AcceptanceRule, ...] = get_args(AcceptanceRule)
    rule = choice("--acceptance-rule", name, choices)
    if params.temperature == 0:
        return "greedy"
    if rule == "greedy":
        raise BadInput(
            "--acceptance-rule", name, "needs --temperature 0; above it take coupled or rejection"
        )
    return rule


def choice(field: str, value: str, choices: tuple[C, ...]) -> C:
    """The choice that was named."""
    for one in choices:
        if one == value:
            return one
    raise BadInput(field, value, f"{nearest(value, choices)}choose one of {', '.join(choices)}")


def nearest(value: str, known: Sequence[str]) -> str:
    """A question about the known one that is most alike, "" if none is."""
    import difflib

    near = difflib.get_close_matches(value, known, n=1)
    return f"did you mean {near[0]}? " if near else ""


def utf8(field: str, text: str) -> str:
    """The text, which must have been given in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadInput(field, repr(text[:40]), "must be UTF-8 text") from None
    return text


def start_log(log_format: str, log_level: str) -> None:
    from multispin.net.logs import LogFormat, LogLevel, log_to_stderr

    log_to_stderr(
        choice("--log-format", log_format, get_args(LogFormat)),
        choice("--log-level", log_level, get_args(LogLevel)),
    )


def random_seed() -> int:
    return secrets.randbits(32)


def check_writing(draft_length: int, max_tokens: int, seed: int | None) -> None:
    if not 1 <= max_tokens < 2**31:
        raise BadInput("--max-tokens", max_tokens, "must be at least 1")
    if not 0 <= draft_length < 2**15:
        raise BadInput("--draft-length", draft_length, "must be 0 or more, and a few at most")
    if seed is not None:
        check_seed(seed)


def check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise BadInput("--seed", seed, "must be an integer from 0 to 2^63 - 1")
