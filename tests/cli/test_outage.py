"""`multispin device --events` over a server that is killed and another that is not."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_commands import MULTISPIN, PROMPT, complete, serving

LENGTH = 600
SAMPLING = ("--max-tokens", str(LENGTH), "--temperature", "0.8", "--seed", "7")


def test_the_other_server_goes_on_and_events_say_so(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(PROMPT)
    with serving() as (process, first), serving() as (_, second):
        expected = complete(second, "--draft", "none", *SAMPLING)
        command = ["device", "--events", "--prompts", str(prompts), "--draft", "ngram", *SAMPLING]
        servers = ("--server", first, "--other-server", second, "--offline", "draft")
        with subprocess.Popen(
            [*MULTISPIN, *command, *servers], stdout=subprocess.PIPE, text=True
        ) as device:
            assert device.stdout is not None
            events: list[dict[str, Any]] = []
            for line in device.stdout:
                events.append(json.loads(line))
                if events[-1]["event"] == "commit":
                    process.kill()
    told = [(event["state"], bool(event["reason"])) for event in events if event["event"] == "link"]
    assert told == [("down", True), ("up", False)]
    text = ""
    for event in events:
        if event["event"] == "commit":
            if "replaces" in event:
                text = text[: event["replaces"]["character"]]
            text += event["text"]
    assert text == expected["text"]
    assert events[-1]["event"] == "done"
    assert events[-1]["token_ids"] == expected["token_ids"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--offline", "draft"), "--offline = draft: goes with --port or --events"),
        (("--offline", "draft", "--events"), "--offline = draft: needs a model that drafts"),
        (("--offline", "never"), "choose one of wait, draft, fail"),
        (("--other-server", "nowhere"), "--other-server = nowhere"),
    ],
)
def test_what_cannot_be_is_refused(arguments: tuple[str, ...], said: str) -> None:
    with serving() as (_, address):
        done = subprocess.run(
            [*MULTISPIN, "device", "--server", address, "--draft", "lookup", *arguments],
            input="",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2
    assert said in done.stderr
