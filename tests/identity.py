"""Certificates, token files and a protected server in this process, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from multispin.api.app import ServerState, create_app
from multispin.api.serving import Protection, address_of, bind, serve_app
from multispin.core.batch import BatchLimits
from multispin.core.limits import ServerLimits
from multispin.net.authority import Authority
from multispin.net.server import EdgeServer
from multispin.net.token_file import TokenEntry, add_token, new_token, token_hash
from multispin.net.tokens import Tokens
from tests.api.stage import HeldEngine

NEVER_END = {"256": -100.0}  # the n-gram model's end token, made unlikely


@dataclass(frozen=True)
class Certs:
    """A CA's folder, with server.pem for 127.0.0.1 and localhost, and phone.pem."""

    folder: Path

    def __call__(self, name: str) -> str:
        return str(self.folder / name)


def make_certs(folder: Path, hosts: tuple[str, ...] = ("127.0.0.1", "localhost")) -> Certs:
    authority = Authority.at(folder)
    authority.make_server(list(hosts), 10)
    authority.make_device("phone", 10)
    return Certs(folder)


def add(file: Path, name: str, *scopes: str, expires_s: float | None = None, **limits: Any) -> str:
    """Add a token to the file, and return it."""
    token = new_token()
    expires = None
    if expires_s is not None:
        expires = datetime.now(UTC) + timedelta(seconds=expires_s)
    of = scopes or ("generate",)
    add_token(file, TokenEntry(name, token_hash(token.encode()), of, expires, **limits), "--file")  # type: ignore[arg-type]
    return token


@dataclass
class Served:
    address: str
    server: EdgeServer
    engine: HeldEngine
    refused: list[str]
    tokens: Tokens | None


@asynccontextmanager
async def served(protection: Protection, *, num_sequences: int = 4) -> AsyncIterator[Served]:
    """A server with the n-gram model on a real socket."""
    engine = HeldEngine(num_sequences, 60_000, None)
    limits = ServerLimits(batch=BatchLimits(mode="stop-and-wait"))
    server = EdgeServer(engine, limits)  # type: ignore[arg-type]
    listening = bind("127.0.0.1", 0)
    refused: list[str] = []
    running = asyncio.ensure_future(server.run())
    serving = asyncio.create_task(
        serve_app(
            create_app(ServerState(server)),
            listening,
            running,
            refused=refused.append,
            protection=protection,
        )
    )
    await asyncio.sleep(0.05)
    try:
        address = address_of(listening, protection.tls)
        yield Served(address, server, engine, refused, protection.tokens)
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await serving


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
