"""Processes as people start them: a server with the n-gram model, a device agent in front of it."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import pytest

MULTISPIN = [sys.executable, "-m", "multispin"]
CONTEXT_LENGTH = 1024


class Endpoints(NamedTuple):
    """HOST:PORT of each."""

    server: str
    device: str


@contextmanager
def started(*arguments: str) -> Iterator[str]:
    """The address that the process prints first."""
    with subprocess.Popen([*MULTISPIN, *arguments], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address, f"{arguments[0]} did not start"
            yield address
        finally:
            process.kill()


@pytest.fixture(scope="session")
def endpoints() -> Iterator[Endpoints]:
    with ExitStack() as stack:
        size = ("--ctx-size", str(CONTEXT_LENGTH))
        server = stack.enter_context(started("serve", "--target", "ngram", "--port", "0", *size))
        device = started("device", "--server", server, "--draft", "ngram", "--port", "0")
        yield Endpoints(server, stack.enter_context(device))


@pytest.fixture(params=Endpoints._fields)
def endpoint(endpoints: Endpoints, request: pytest.FixtureRequest) -> str:
    """One after the other: both speak the same."""
    address: str = getattr(endpoints, request.param)
    return address


def get(address: str, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://{address}{path}", timeout=30) as answer:
        document: dict[str, Any] = json.load(answer)
        return document


def complete(server: str, prompt: str, *arguments: str) -> dict[str, Any]:
    """What `multispin complete` writes with the target alone."""
    command = [*MULTISPIN, "complete", prompt, "--server", server, "--draft", "none", "--json"]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result
