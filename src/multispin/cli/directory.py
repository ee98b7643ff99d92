"""`multispin directory`: one address for devices and HTTP clients of several replicas."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multispin.cli import options
from multispin.cli.protection import protection
from multispin.errors import BadInput
from multispin.types import DRAIN_S, MAX_DRAIN_S

if TYPE_CHECKING:
    import socket

    from multispin.api.directory_app import DirectoryState
    from multispin.api.serving import Protection
    from multispin.net.address import Address


def directory(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE.json", help="List of targets and replicas; followed."),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes any free one.")] = options.DEFAULT_PORT,
    cert: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.pem",
            help="Its certificate, for TLS (see `certs`); shown to replicas that ask for one.",
        ),
    ] = None,
    key: options.Key = None,
    client_ca: options.ClientCa = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.json",
            help="Let in only who has an access token (`tokens`); replicas are shown it.",
        ),
    ] = None,
    insecure: options.Insecure = False,
    token_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="File that has its own token, with which it watches replicas."
        ),
    ] = None,
    ca: Annotated[
        str | None,
        typer.Option(metavar="FILE.pem", help="Trust replicas of this CA, not the system's."),
    ] = None,
    drain_s: Annotated[
        float, typer.Option(help="Seconds for HTTP clients' texts to end when it is told to stop.")
    ] = DRAIN_S,
    log_format: options.LogFormat = "text",
    log_level: options.LogLevel = "info",
) -> None:
    """Send devices to their replicas, and write for HTTP clients by way of them."""
    if not 0 <= drain_s <= MAX_DRAIN_S:
        raise BadInput("--drain-s", drain_s, f"must lie between 0 and {MAX_DRAIN_S}")

    from multispin.api.directory_app import DirectoryState
    from multispin.api.serving import bind

    options.start_log(log_format, log_level)
    protected = protection(
        host, cert=cert, key=key, client_ca=client_ca, tokens=tokens, insecure=insecure
    )
    own = _Own(token_file or "", ca, cert, key)
    state = DirectoryState(file, own.address)
    asyncio.run(_serve(bind(host, port), state, protected, drain_s))


class _Own:
    """What shows replicas who the directory is."""

    def __init__(self, token_file: str, ca: str | None, cert: str | None, key: str | None) -> None:
        self._token_file = token_file
        self._ca = ca
        self._cert = cert
        self._key = key
        self._secure: Address | None = None  # the first with TLS: making a context takes 20 ms

    def address(self, server: str) -> Address:
        """Of a replica. With ``--ca`` all have TLS; without, those that are not on loopback."""
        from multispin.net.address import elsewhere, parse_address

        if self._secure is not None and (self._ca or server.startswith("https://")):
            return elsewhere(self._secure, server)
        field, token_file = "replicas.server", self._token_file
        found = parse_address(server, field, token_file=token_file, ca=self._ca)
        if found.tls is not None:
            found = self._secure = parse_address(
                server, field, token_file=token_file, ca=self._ca, cert=self._cert, key=self._key
            )
        return found


async def _serve(
    listening: socket.socket, state: DirectoryState, protected: Protection, drain_s: float
) -> None:
    from multispin.api.directory_app import create_directory_app
    from multispin.api.serving import address_of, serve_app

    async def main() -> None:
        print(address_of(listening, protected.tls), flush=True)
        await state.watches.run()

    async def drain() -> None:
        await state.drain(drain_s)

    try:
        app = create_directory_app(state)
        await serve_app(app, listening, main(), drain, state.server.refused, protected)
    finally:
        await state.proxy.close()
