"""`multispin tokens` and `certs` as people run them, and what `serve` asks for off loopback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from multispin.cli.endpoint import HttpEndpoint
from multispin.errors import BadInput
from multispin.net import token_file
from multispin.net.address import parse_address
from multispin.net.token_file import TokenEntry, add_token, read_tokens, token_hash
from tests.cli.conftest import agent
from tests.cli.test_config import real_app
from tests.identity import Certs, add, make_certs

MULTISPIN = [sys.executable, "-m", "multispin"]
TOKEN = re.compile(r"msp_[A-Za-z0-9_-]{43}")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


@pytest.fixture(scope="module")
def multispin() -> Callable[..., Any]:
    def run(*arguments: object) -> Any:
        done = CliRunner().invoke(real_app(), [str(one) for one in arguments])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return run


# --- tokens --------------------------------------------------------------------------------------


def test_a_token_is_printed_once_and_kept_as_its_hash(
    file: Path, multispin: Callable[..., Any]
) -> None:
    done = multispin("tokens", "add", "phone", "--file", file)
    token = done.stdout.strip()
    assert TOKEN.fullmatch(token)
    [entry] = read_tokens(file, "--file")
    assert entry.sha256 == token_hash(token.encode())
    assert (entry.name, entry.scopes) == ("phone", ("generate",))
    assert file.stat().st_mode & 0o777 == 0o600
    listed = multispin("tokens", "list", "--file", file)
    told = listed.output + done.stderr + file.read_text()
    assert "phone: generate, until 20" in listed.output
    assert token not in told and token[4:] not in told
    assert entry.sha256 not in listed.output


def test_what_was_asked_for_is_what_is_listed(file: Path, multispin: Callable[..., Any]) -> None:
    limits = {
        "max_sessions": 3,
        "max_prompt_tokens": 100,
        "max_draft_length": 0,
        "requests_per_s": 0.5,
    }
    flags = [x for k, v in limits.items() for x in (f"--{k.replace('_', '-')}", v)]
    scopes = ("--scope", "operate", "--scope", "generate")
    done = multispin("tokens", "add", "a", "--file", file, *scopes, "--days", 0, *flags, "--json")
    added = json.loads(done.stdout)
    assert TOKEN.fullmatch(added.pop("token"))
    expected = {"name": "a", "scopes": ["operate", "generate"], **limits, "expired": False}
    assert added == expected
    multispin("tokens", "add", "b", "--file", file, "--days", "0.00001")
    listed = json.loads(multispin("tokens", "list", "--file", file, "--json").stdout)
    assert listed["tokens"][0] == expected
    assert [one["name"] for one in listed["tokens"]] == ["a", "b"]
    assert "sha256" not in str(listed)
    [entry, _] = read_tokens(file, "--file")
    for name, value in limits.items():
        assert getattr(entry.tenant.limits, name) == value


def test_a_revoked_token_is_gone(file: Path, multispin: Callable[..., Any]) -> None:
    for name in ("a", "b"):
        multispin("tokens", "add", name, "--file", file)
    multispin("tokens", "revoke", "a", "--file", file)
    assert [entry.name for entry in read_tokens(file, "--file")] == ["b"]
    with pytest.raises(BadInput, match="no token has this name"):
        multispin("tokens", "revoke", "a", "--file", file)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["add", "a b"], "NAME"),
        (["add", "é"], "NAME"),
        (["add", ""], "NAME"),
        (["add", "x" * 65], "NAME"),
        (["add", "../x"], "NAME"),
        (["add", "a\n"], "NAME"),
        (["add", "there"], "NAME"),
        (["add", "a", "--days", "-1"], "--days"),
        (["add", "a", "--days", "nan"], "--days"),
        (["add", "a", "--days", "1e9"], "--days"),
        (["add", "a", "--scope", "all"], "--scope"),
        (["add", "a", "--max-sessions", "0"], "--max-sessions"),
        (["add", "a", "--max-prompt-tokens", "-1"], "--max-prompt-tokens"),
        (["add", "a", "--max-draft-length", "-1"], "--max-draft-length"),
        (["add", "a", "--requests-per-s", "0"], "--requests-per-s"),
        (["add", "a", "--requests-per-s", "nan"], "--requests-per-s"),
        (["add", "a", "--requests-per-s", "inf"], "--requests-per-s"),
        (["revoke", "nobody"], "NAME"),
    ],
)
def test_mistakes_are_named_and_change_nothing(
    file: Path, multispin: Callable[..., Any], arguments: list[str], field: str
) -> None:
    add(file, "there")
    before = file.read_bytes()
    with pytest.raises(BadInput) as caught:
        multispin("tokens", *arguments, "--file", file)
    assert caught.value.field == field
    assert file.read_bytes() == before


BROKEN = [
    "",
    "{}",
    "[]",
    '{"tokens": null}',
    '{"tokens": [{}]}',
    '{"tokens": [], "more": 1}',
    '{"tokens": [{"name": "a", "sha256": "00", "scopes": ["generate"]}]}',
    '{"tokens": [{"name": "a", "sha256": "HASH", "scopes": []}]}',
    '{"tokens": [{"name": "a", "sha256": "HASH", "scopes": ["all"]}]}',
    '{"tokens": [{"name": "a\\n", "sha256": "HASH", "scopes": ["generate"]}]}',
    '{"tokens": [{"name": "a", "sha256": "HASH", "scopes": ["generate"], "max_session": 1}]}',
    '{"tokens": [{"name": "a", "sha256": "HASH", "scopes": ["generate"], "max_sessions": 0}]}',
    '{"tokens": [{"name": "a", "sha256": "HASH", "scopes": ["generate"], "expires": 12}]}',
    '{"tokens": [{"name": "a", "sha256": "HASH", "scopes": ["generate"], '
    '"expires": "2030-01-01T00:00:00"}]}',
    '{"tokens": [{"name": "a", "sha256": "HASH", "scopes": ["generate"]}, '
    '{"name": "b", "sha256": "HASH", "scopes": ["generate"]}]}',
]


@pytest.mark.parametrize("text", BROKEN)
def test_a_file_that_is_none_is_neither_read_nor_replaced(
    file: Path, multispin: Callable[..., Any], text: str
) -> None:
    file.write_text(text.replace("HASH", "0" * 64))
    file.chmod(0o600)
    before = file.read_bytes()
    for arguments in (["list"], ["add", "x"], ["revoke", "a"]):
        with pytest.raises(BadInput) as caught:
            multispin("tokens", *arguments, "--file", file)
        assert caught.value.field == "--file"
    assert file.read_bytes() == before


@pytest.mark.parametrize("mode", [0o644, 0o602, 0o620, 0o660, 0o604])
def test_a_file_that_is_open_to_others_is_refused(
    file: Path, multispin: Callable[..., Any], mode: int
) -> None:
    add(file, "a")
    file.chmod(mode)
    for arguments in (["list"], ["add", "x"], ["revoke", "a"]):
        with pytest.raises(BadInput, match="chmod 600"):
            multispin("tokens", *arguments, "--file", file)


def test_who_could_read_the_file_still_can_and_a_link_leads_where_it_led(
    file: Path, tmp_path: Path
) -> None:
    add(file, "a")
    file.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(file)
    add(link, "b")
    assert link.is_symlink() and len(read_tokens(file, "--file")) == 2
    assert file.stat().st_mode & 0o777 == 0o640


def test_what_fails_while_writing_leaves_the_file_and_nothing_else(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(file, "a")
    before, names = file.read_bytes(), sorted(os.listdir(file.parent))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(token_file.os, "fsync", full)
    with pytest.raises(BadInput, match="No space left"):
        add(file, "b")
    assert file.read_bytes() == before
    assert sorted(os.listdir(file.parent)) == names


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot be written"):
        add(tmp_path / "file" / "tokens.json", "a")


def test_a_file_holds_so_many_and_no_more(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_file, "MAX_TOKENS", 2)
    add(file, "a")
    add(file, "b")
    with pytest.raises(BadInput, match="no more"):
        add_token(file, TokenEntry("c", "0" * 64, ("generate",)), "--file")


def test_several_that_add_at_once_lose_none(file: Path) -> None:
    names = [f"device-{number}" for number in range(6)]
    adding = [
        subprocess.Popen(
            [*MULTISPIN, "tokens", "add", name, "--file", file],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for name in names
    ]
    printed = {process.communicate(timeout=60)[0].strip() for process in adding}
    entries = read_tokens(file, "--file")
    assert sorted(entry.name for entry in entries) == names
    assert {entry.sha256 for entry in entries} == {token_hash(one.encode()) for one in printed}


# --- certificates --------------------------------------------------------------------------------


def test_certs_are_made_and_added_to(tmp_path: Path, multispin: Callable[..., Any]) -> None:
    folder = tmp_path / "ca"
    multispin("certs", folder, "--host", "edge.test", "--device", "phone")
    files = {"ca.key", "ca.pem", "phone.key", "phone.pem", "server.key", "server.pem"}
    assert {path.name for path in folder.iterdir()} == files
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o777 == (0o600 if path.suffix == ".key" else 0o644)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    multispin("certs", folder, "--device", "laptop")
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(after) - set(before) == {"laptop.key", "laptop.pem"}
    assert all(after[name] == data for name, data in before.items())
    multispin("certs", folder, "--host", "192.0.2.7")
    changed = {n for n, data in after.items() if (folder / n).read_bytes() != data}
    assert changed == {"server.key", "server.pem"}


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["--host", "edge:8600"], "--host"),
        (["--host", "a b"], "--host"),
        (["--host", ""], "--host"),
        (["--device", "../phone"], "--device"),
        (["--device", "ca"], "--device"),
        (["--device", "server"], "--device"),
        (["--days", "0"], "--days"),
        (["--days", "99999"], "--days"),
    ],
)
def test_what_cannot_be_certified_is_named(
    tmp_path: Path, multispin: Callable[..., Any], arguments: list[str], field: str
) -> None:
    with pytest.raises(BadInput) as caught:
        multispin("certs", tmp_path / "ca", *arguments)
    assert caught.value.field == field


def test_a_damaged_authority_signs_nothing(tmp_path: Path, multispin: Callable[..., Any]) -> None:
    certs = make_certs(tmp_path / "ca")
    key = Path(certs("ca.key"))
    data = key.read_bytes()
    for other in (b"junk", Path(certs("phone.key")).read_bytes()):
        key.write_bytes(other)
        with pytest.raises(BadInput, match=r"ca\.key"):
            multispin("certs", certs.folder, "--device", "new")
    key.write_bytes(data)
    key.chmod(0o644)
    with pytest.raises(BadInput, match="chmod 600"):
        multispin("certs", certs.folder, "--device", "new")
    assert not (certs.folder / "new.pem").exists()


# --- serve ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Certs:
    return make_certs(tmp_path_factory.mktemp("ca"))


def serve_fails(*arguments: str) -> str:
    done = subprocess.run(
        [*MULTISPIN, "serve", "--target", "ngram", "--port", "0", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == "", done
    [line] = done.stderr.splitlines()
    return line


def test_off_loopback_tls_and_tokens_are_asked_for(certs: Certs, file: Path) -> None:
    add(file, "a")
    tls = ("--cert", certs("server.pem"), "--key", certs("server.key"))
    tokens = ("--tokens", str(file))
    public = ("--host", "0.0.0.0")
    assert "without TLS (--cert, --key) and access tokens (--tokens)" in serve_fails(*public)
    assert "without access tokens (--tokens)" in serve_fails(*public, *tls)
    assert "without TLS (--cert, --key):" in serve_fails(*public, *tokens)
    assert "--key" in serve_fails("--cert", certs("server.pem"))
    assert "--cert" in serve_fails("--key", certs("server.key"))
    assert "--cert" in serve_fails("--client-ca", certs("ca.pem"))
    assert "--tokens" in serve_fails("--tokens", str(file.with_name("none")))
    file.chmod(0o604)
    assert "chmod 600" in serve_fails(*tokens)


@pytest.mark.parametrize("form", ["text", "json"])
def test_insecure_is_said_in_the_log_at_every_start(form: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    insecure = ("--host", "0.0.0.0", "--insecure", "--log-level", "warning", "--log-format", form)
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [*MULTISPIN, "serve", "--target", "ngram", "--port", "0", *insecure],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None and process.stdout.readline()
        finally:
            process.kill()
    said = [line for line in log.read_text().splitlines() if "insecure" in line]
    assert len(said) == 1
    if form == "json":
        line = json.loads(said[0])
        assert (line["level"], line["event"], line["host"]) == ("warning", "insecure", "0.0.0.0")
        assert "TLS" in line["lacking"] and "tokens" in line["lacking"]


def test_all_commands_go_through_tls_with_a_certificate_and_a_token(
    certs: Certs, file: Path, tmp_path: Path
) -> None:
    token, operating = add(file, "phone"), add(file, "boss", "operate")
    secret = tmp_path / "token"
    secret.write_text(token)
    secret.chmod(0o600)
    protected = (
        *("serve", "--target", "ngram", "--port", "0", "--host", "0.0.0.0"),
        *("--cert", certs("server.pem"), "--key", certs("server.key")),
        *("--client-ca", certs("ca.pem"), "--tokens", str(file)),
    )
    own = ("--ca", certs("ca.pem"), "--cert", certs("phone.pem"), "--key", certs("phone.key"))
    with agent(*protected) as (_, address):
        assert address.startswith("https://0.0.0.0:")
        server = f"127.0.0.1:{address.rpartition(':')[2]}"
        complete = ("complete", "x", "--server", server, "--max-tokens", "3", "--json")
        done = run(*complete, *own, "--token-file", str(secret))
        assert json.loads(done.stdout)["usage"]["completion_tokens"] == 3
        by_variable = {"MULTISPIN_TOKEN": token}
        assert run(*complete, *own, environment=by_variable).returncode == 0
        for left_out, word in ((own, "token"), (own[:2], "certificate"), ((), "TLS")):
            done = run(*complete, *left_out)
            assert done.returncode == 2 and word in done.stderr, done.stderr
            assert len(done.stderr.splitlines()) == 1
        look = ("top", "--once", "--server", server, *own)
        assert "target ngram" in run(*look, "--token", operating).stdout
        assert "scope operate" in run(*look, "--token-file", str(secret)).stderr
        device = ("device", "--server", server, "--port", "0", *own, "--token-file", str(secret))
        with agent(*device) as (_, near):
            done = run("chat", "--device", near, "--max-tokens", "3", given="hello\n")
            assert done.returncode == 0 and done.stdout.strip()


@pytest.mark.parametrize("shared", [False, True])
def test_a_prompt_is_read_once_for_each_tenant_or_for_all(
    file: Path, tmp_path: Path, shared: bool
) -> None:
    names = ("one", "two", "two", "one")
    known = {name: add(file, name, "generate", "operate") for name in set(names)}
    prompt = "The phone drafts and the server verifies. " * 10
    more = ("--share-prefixes",) if shared else ()
    with ExitStack() as stack:
        options = ("--target", "ngram", "--port", "0", "--tokens", str(file), *more)
        server = logged(stack, tmp_path / "log", "serve", *options)
        rows = [num_rows(server, known["one"])]
        for name in names:
            wanted = ("--draft", "none", "--max-tokens", "4", "--token", known[name])
            assert run("complete", prompt, "--server", server, *wanted).returncode == 0
            rows.append(num_rows(server, known["one"]))
    was_read = [after - before > len(prompt) for before, after in pairwise(rows)]
    assert was_read == [True, not shared, False, False]


def num_rows(server: str, token: str) -> int:
    address = parse_address(server, token=token)
    state = json.loads(HttpEndpoint(address, "--server", "").get("/api/cell"))
    number: int = state["counters"]["num_rows"]
    return number


def test_no_log_has_a_token_at_any_level(file: Path, tmp_path: Path) -> None:
    token = add(file, "phone")
    debug = ("--log-level", "debug", "--port", "0")
    tokens = ("--tokens", str(file))
    with ExitStack() as stack:
        server = logged(stack, tmp_path / "server", "serve", "--target", "ngram", *tokens, *debug)
        own = ("--server", server, "--token", token)
        near = logged(stack, tmp_path / "device", "device", *own, *debug)
        assert run("complete", "x", *own, "--max-tokens", "3").returncode == 0
        assert run("chat", "--device", near, given="hello\n").returncode == 0
        assert run("complete", "x", "--server", server, "--token", f"{token}x").returncode == 2
        assert "scope operate" in run("top", "--once", *own).stderr
    logs = [(tmp_path / name).read_text() for name in ("server", "device")]
    assert "not_let_in" in logs[0] and all("verdict" in log for log in logs)
    assert not any("msp_" in log for log in logs)


def logged(stack: ExitStack, log: Path, *arguments: str) -> str:
    """Start it, and say its address."""
    process = stack.enter_context(
        subprocess.Popen(
            [*MULTISPIN, *arguments],
            stdout=subprocess.PIPE,
            stderr=stack.enter_context(log.open("w")),
            text=True,
        )
    )
    stack.callback(process.kill)
    assert process.stdout is not None
    return process.stdout.readline().strip()


def run(
    *arguments: str, environment: dict[str, str] | None = None, given: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MULTISPIN, *arguments],
        env=os.environ | (environment or {}),
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
