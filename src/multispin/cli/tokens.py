"""`multispin tokens`: the access tokens of a server, which `serve --tokens` reads."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from multispin.cli import options
from multispin.core.tenant import SCOPES
from multispin.errors import BadInput

app = typer.Typer(no_args_is_help=True)

DEFAULT_FILE = "tokens.json"
DEFAULT_DAYS = 90
MAX_DAYS = 36500

File = Annotated[str, typer.Option(metavar="FILE.json", help="The server's file of tokens.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Who has it, for lists and logs.")]


@app.command()
def add(
    name: Name,
    file: File = DEFAULT_FILE,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="generate (have texts written; the default), operate (see metrics and the cell); "
            "several are given one by one."
        ),
    ] = None,
    days: Annotated[
        float, typer.Option(help="Valid for so long; 0: until it is revoked.")
    ] = DEFAULT_DAYS,
    max_sessions: Annotated[int | None, typer.Option(help="Sessions open at once.")] = None,
    max_prompt_tokens: Annotated[int | None, typer.Option(help="Tokens of a prompt.")] = None,
    max_draft_length: Annotated[int | None, typer.Option(help="Tokens of a draft.")] = None,
    requests_per_s: Annotated[float | None, typer.Option(help="Sessions opened a second.")] = None,
    as_json: options.Json = False,
) -> None:
    """Make a token and print it, once: the file has only its hash."""
    import msgspec

    from multispin.net.token_file import TokenEntry, add_token, new_token, token_hash

    if not 0 <= days <= MAX_DAYS:
        raise BadInput("--days", days, f"must lie between 0 and {MAX_DAYS}")
    token = new_token()
    known = {
        "name": name,
        "sha256": token_hash(token.encode()),
        "scopes": [options.choice("--scope", one, SCOPES) for one in scope or ["generate"]],
        "expires": _after(days) if days else None,
        "max_sessions": max_sessions,
        "max_prompt_tokens": max_prompt_tokens,
        "max_draft_length": max_draft_length,
        "requests_per_s": requests_per_s,
    }
    try:
        entry = msgspec.convert(known, TokenEntry)
    except msgspec.ValidationError as error:
        field, value = _named(str(error), known)
        raise BadInput(field, value, f"cannot be: {str(error).partition(' - at')[0]}") from None
    add_token(Path(file), entry, "--file")
    if as_json:
        print(json.dumps({"token": token, **_shown(entry)}))
        return
    print(token)
    print(f"{name}: {_described(_shown(entry))}; it is not shown again", file=sys.stderr)


@app.command("list")
def list_tokens(file: File = DEFAULT_FILE, as_json: options.Json = False) -> None:
    """Show who has a token, for what, and until when."""
    from multispin.net.token_file import read_tokens

    shown = [_shown(entry) for entry in read_tokens(Path(file), "--file")]
    if as_json:
        print(json.dumps({"file": file, "tokens": shown}))
        return
    for one in shown:
        print(f"{one['name']}: {_described(one)}")


@app.command()
def revoke(name: Name, file: File = DEFAULT_FILE) -> None:
    """Take a token back. What goes on with it ends within seconds."""
    from multispin.net.token_file import revoke_token

    revoke_token(Path(file), name, "--file")
    print(f"{name}: revoked", file=sys.stderr)


def _after(days: float) -> datetime:
    return (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)


def _named(error: str, known: dict[str, Any]) -> tuple[str, Any]:
    """The option that msgspec's message is about, and its value."""
    key = error.rpartition("$.")[2].removesuffix("`")
    return ("NAME" if key == "name" else f"--{key.replace('_', '-')}"), known[key]


def _shown(entry: Any) -> dict[str, Any]:
    """What a list says of a token."""
    import msgspec

    known: dict[str, Any] = msgspec.to_builtins(entry)
    del known["sha256"]
    return {**known, "expired": entry.has_expired(time.time())}


def _described(shown: dict[str, Any]) -> str:
    words = [" and ".join(shown["scopes"])]
    when = shown.get("expires")
    words.append(f"{'EXPIRED' if shown['expired'] else 'until'} {when}" if when else "no expiry")
    words += [f"{key} {value:g}" for key, value in shown.items() if key.startswith(("max", "req"))]
    return ", ".join(words)
