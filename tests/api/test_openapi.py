"""The OpenAPI document is served, and what schemathesis makes of it finds no server error."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import msgspec
import pytest

from multispin.api.openai_answers import ChatChunk, TextChunk
from multispin.api.openapi import document
from tests.api.conftest import Endpoints, get


def fuzz(address: str, folder: Path, *arguments: str) -> None:
    """All checks but one: not all that is forbidden can be said in a schema (a prompt's length)."""
    url = f"http://{address}/openapi.json"
    checks = ("--checks", "all", "--exclude-checks", "positive_data_acceptance")
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", url, *checks, "--seed", "1", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_schemathesis_finds_nothing(endpoint: str, tmp_path: Path) -> None:
    fuzz(endpoint, tmp_path, "--phases", "fuzzing", "--max-examples", "10")


@pytest.mark.slow
def test_schemathesis_finds_nothing_with_time(endpoint: str, tmp_path: Path) -> None:
    fuzz(endpoint, tmp_path, "--max-examples", "40")


def test_both_ends_serve_the_same_document_which_names_the_model(endpoints: Endpoints) -> None:
    served = [get(address, "/openapi.json") for address in endpoints]
    assert served[0] == served[1] == document(["ngram"])
    assert document([]) != served[0]


ASKED = {
    "/v1/completions": {"prompt": "The "},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "The "}]},
}


@pytest.mark.parametrize(("path", "chunk"), [*zip(ASKED, (TextChunk, ChatChunk), strict=True)])
def test_what_is_streamed_is_what_the_document_says(
    endpoints: Endpoints, path: str, chunk: type[msgspec.Struct]
) -> None:
    content = document(["ngram"])["paths"][path]["post"]["responses"]["200"]["content"]
    data = content["text/event-stream"]["schema"]["properties"]["data"]
    assert data["contentSchema"]["$ref"].endswith(f"/{chunk.__name__}")
    asked = {"model": "ngram", "stream": True, "max_tokens": 5, "n": 2, **ASKED[path]}
    for address in endpoints:
        body = json.dumps(asked).encode()
        with urllib.request.urlopen(f"http://{address}{path}", body, timeout=30) as answer:
            events = [line[6:] for line in answer if line.startswith(b"data: ")]
        assert events[-1].strip() == b"[DONE]"
        assert len(events) > 2
        for event in events[:-1]:
            msgspec.json.decode(event, type=chunk)


def test_the_document_lists_the_fields_of_the_contract() -> None:
    schemas = document(["x"])["components"]["schemas"]
    for name in ("ChatRequest", "CompletionRequest"):
        fields = schemas[name]["properties"]
        assert {"top_k", "min_p", "acceptance_rule", "draft_length", "seed", "n"} <= set(fields)
        assert fields["model"]["enum"] == ["x"]
        assert schemas[name]["additionalProperties"] is False
    details = schemas["TokenDetails"]["properties"]
    assert set(details) == {"accepted_prediction_tokens", "rejected_prediction_tokens"}
