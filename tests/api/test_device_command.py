"""`multispin device --port`: what it refuses, and what it makes of its flags."""

from __future__ import annotations

import subprocess

import pytest

from tests.api.conftest import MULTISPIN, Endpoints, get, started
from tests.api.test_openai_client import SAMPLED, client, text_of


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--port", "0", "--temperature", "1"], ["--temperature = 1.0", "each request"]),
        (["--port", "0", "--prompts", "x.txt"], ["--prompts = x.txt"]),
        (["--port", "0", "--chat"], ["--chat"]),
        (["--port", "0", "--seed", "3"], ["--seed = 3"]),
        (["--port", "0", "--events"], ["--events"]),
        (["--max-sessions", "2"], ["--max-sessions = 2", "--port"]),
        (["--port", "0", "--max-sessions", "0"], ["--max-sessions = 0", "1 and 255"]),
        (["--port", "0", "--acceptance-rule", "greedy"], ["--acceptance-rule", "greedy"]),
        (["--port", "99999"], ["--port", "99999"]),
        (["--port", "0", "--server", "127.0.0.1:1"], ["--server", "127.0.0.1:1"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], parts: list[str]) -> None:
    done = subprocess.run(
        [*MULTISPIN, "device", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    for part in parts:
        assert part in last


def test_its_flags_are_the_defaults_of_requests(endpoints: Endpoints) -> None:
    flags = ("--draft", "ngram", "--draft-length", "0", "--acceptance-rule", "rejection")
    with started("device", "--server", endpoints.server, "--port", "0", *flags) as address:
        assert get(address, "/health")["acceptance_rule"] == "rejection"
        with client(address) as it:
            answer = it.completions.create(model="ngram", prompt="The phone ", **SAMPLED)
            drafted = it.completions.create(
                model="ngram", prompt="The phone ", extra_body={"draft_length": 4}, **SAMPLED
            )
        coupled = text_of(address, extra_body={"acceptance_rule": "coupled"})
    for its, drafts in ((answer, False), (drafted, True)):
        assert (its.speculation["num_drafts"] > 0) == drafts  # type: ignore[attr-defined]
    assert coupled == text_of(endpoints.server)
