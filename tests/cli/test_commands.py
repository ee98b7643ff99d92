"""The commands as a person runs them: processes, sockets, exit codes. The n-gram model only."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.core.harness import PROMPT, request, write

MULTISPIN = [sys.executable, "-m", "multispin"]


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MULTISPIN, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [*MULTISPIN, "serve", "--target", "ngram", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"127\.0\.0\.1:\d+", address)
        yield process, address
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving() as (_, address):
        yield address


def complete(server: str, *arguments: str) -> dict:
    done = run("complete", PROMPT, "--server", server, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("draft", ["none", "lookup", "ngram"])
def test_complete_prints_the_contracts_object(server: str, draft: str) -> None:
    result = complete(
        server, "--draft", draft, "--temperature", "0.8", "--seed", "7", "--max-tokens", "48"
    )
    expected = write(request(), "none")
    assert result["token_ids"] == expected.session.committed
    assert result["text"] == expected.text
    assert result["finish_reason"] == "length"
    assert result["usage"] == {"prompt_tokens": len(PROMPT), "completion_tokens": 48}
    assert result["seed"] == 7
    assert result["acceptance_rule"] == "coupled"
    speculation = result["speculation"]
    assert set(speculation) >= {
        "num_drafts",
        "num_draft_tokens",
        "num_accepted_tokens",
        "mean_acceptance_length",
        "acceptance_by_position",
        "uplink_bytes",
        "downlink_bytes",
    }
    assert (speculation["num_drafts"] > 0) == (draft != "none")
    assert speculation["uplink_bytes"] > 0


def test_complete_streams_text_for_people(server: str) -> None:
    done = run("complete", "-", "--server", server, "--max-tokens", "20", stdin=PROMPT)
    assert done.returncode == 0
    message = request(rule="greedy", temperature=0.0, max_tokens=20)
    assert done.stdout == write(message, "none").text + "\n"
    assert "20 tokens (length), seed " in done.stderr


def test_a_device_takes_prompts_from_a_file_and_from_standard_input(
    server: str, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": PROMPT}) + "\n\n" + json.dumps({"prompt": "x\ny"}) + "\n")
    options = ("--server", server, "--max-tokens", "12", "--draft", "ngram", "--seed", "7")
    done = run("device", "--prompts", str(file), "--events", "--temperature", "0.8", *options)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    finished = [event["token_ids"] for event in events if event["event"] == "done"]
    assert finished == [
        write(request(prompt=prompt, max_tokens=12), "none").session.committed
        for prompt in (PROMPT, "x\ny")
    ]
    commits = [event for event in events if event["event"] == "commit"]
    assert sum(event["num_tokens"] for event in commits) == 24
    piped = run("device", *options, stdin=f"{PROMPT}\n\n")
    assert piped.returncode == 0
    message = request(rule="greedy", temperature=0.0, max_tokens=12)
    assert piped.stdout == write(message, "none").text + "\n\n"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--temperature", "-1"], ["temperature", "-1", "between 0 and"]),
        (["--top-p", "0"], ["top_p", "0", "above 0"]),
        (["--max-tokens", "0"], ["--max-tokens", "at least 1"]),
        (["--draft-length", "-1"], ["--draft-length", "0 or more"]),
        (["--draft-length", "33"], ["draft_length", "33", "0 to 32"]),
        (["--seed", "-3"], ["--seed", "-3", "2^63"]),
        (["--logit-bias", "7"], ["--logit-bias", "7", "ID=BIAS"]),
        (["--logit-bias", "9999=1"], ["logit_bias", "9999", "no token id"]),
        (["--acceptance-rule", "luck"], ["luck", "greedy, coupled, rejection"]),
        (["--acceptance-rule", "greedy", "--temperature", "1"], ["greedy", "--temperature 0"]),
        (["--draft", "no-such-model"], ["no-such-model", "qwen2.5-coder-0.5b"]),
        (["--draft", "/no/such/file.gguf"], ["/no/such/file.gguf"]),
        (["--max-tokens", "many"], ["--max-tokens"]),
        (["--max-tokens", str(2**62)], ["--max-tokens"]),
        (["--draft-length", str(10**23)], ["--draft-length"]),
        (["--top-k", str(10**23)], ["top_k"]),
        (["--logit-bias", f"{10**23}=1"], ["--logit-bias"]),
        (["--stop", "a\udcff"], ["--stop", "UTF-8"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    server: str, arguments: list[str], parts: list[str]
) -> None:
    done = run("complete", PROMPT, "--server", server, *arguments)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "rror" in last
    for part in parts:
        assert part in last


def test_a_prompt_that_does_not_fit_is_refused() -> None:
    with serving("--ctx-size", "64") as (_, address):
        done = run("complete", "x" * 64, "--server", address)
        assert done.returncode == 2
        assert "64 tokens" in done.stderr and "--ctx-size" in done.stderr
        assert run("complete", "x" * 20, "--server", address).returncode == 0


@pytest.mark.parametrize(
    "server_option", ["127.0.0.1:1", "no-such-host.invalid:80", "nonsense", "nonsense:port", ":::"]
)
def test_an_unreachable_server_is_named(server_option: str) -> None:
    done = run("complete", PROMPT, "--server", server_option)
    assert done.returncode == 2, done.stderr
    assert "--server" in done.stderr and server_option in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_refuses_a_taken_port_and_a_public_address(server: str) -> None:
    port = server.rpartition(":")[2]
    done = run("serve", "--target", "ngram", "--port", port)
    assert done.returncode == 2
    assert port in done.stderr and "--port 0" in done.stderr
    done = run("serve", "--target", "ngram", "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 2
    assert "--insecure" in done.stderr
    for arguments in (
        ["--port", "99999"],
        ["--ctx-size", "0"],
        ["--ctx-size", "99999999999"],
        ["--max-sessions", "300"],
        ["--mode", "chaos"],
        ["--policy", "luck"],
        ["--uplink-bits-per-s", "1e6"],
        ["--policy", "heterogeneous", "--bandwidth-hz", "0"],
        ["--policy", "heterogeneous", "--least-share", "1.5"],
        ["--policy", "fixed", "--least-share", "0.5"],
    ):
        assert run("serve", "--target", "ngram", *arguments).returncode == 2
    assert run("serve", "--target", "no-such").returncode == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server_cleanly_even_with_a_session_open(number: int) -> None:
    with serving() as (process, address):
        device = subprocess.Popen(
            [*MULTISPIN, "device", "--server", address], stdin=subprocess.PIPE, text=True
        )
        try:
            with urllib.request.urlopen(f"http://{address}/health", timeout=10) as answer:
                assert json.load(answer) == {"status": "ok", "target": "ngram"}
            process.send_signal(number)
            _, errors = process.communicate(timeout=10)
            assert process.returncode == 0
            assert "Traceback" not in errors
        finally:
            device.kill()
            device.communicate()


def test_help_is_quick_and_loads_no_numpy() -> None:
    code = "import sys; sys.argv = ['multispin', '--help']; import multispin.cli as c\n"
    code += "try: c.main()\nexcept SystemExit: pass\n"
    code += "print(sorted(m for m in ('numpy', 'scipy', 'rich', 'starlette') if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert "complete" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
