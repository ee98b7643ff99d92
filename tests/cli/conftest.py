"""A server with the n-gram model and a device agent in front of it, as people start them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

CONTEXT_LENGTH = 1 << 16


class Agents(NamedTuple):
    """HOST:PORT of each."""

    server: str
    device: str


@contextmanager
def agent(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and the address that it prints first."""
    with subprocess.Popen(
        [sys.executable, "-m", "multispin", *arguments, "--log-level", "warning"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address, f"{arguments[0]} did not start"
            yield process, address
        finally:
            process.kill()


@pytest.fixture(scope="session")
def agents() -> Iterator[Agents]:
    serve = ("serve", "--target", "ngram", "--port", "0", "--ctx-size", str(CONTEXT_LENGTH))
    with (
        agent(*serve) as (_, server),
        agent("device", "--server", server, "--draft", "ngram", "--port", "0") as (_, device),
    ):
        yield Agents(server, device)
