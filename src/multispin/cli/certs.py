"""`multispin certs`: a certificate authority of your own, for tests and networks of your own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from multispin.errors import BadInput

MAX_DAYS = 3650
ALWAYS = ("localhost", "127.0.0.1", "::1")


def certs(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Where the files are put.")],
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address by which devices call the server; as many as it has."),
    ] = None,
    device: Annotated[
        list[str] | None, typer.Option(help="Name of a device, for `serve --client-ca`.")
    ] = None,
    days: Annotated[int, typer.Option(help="Valid for so long.")] = 365,
) -> None:
    """Make certificates: ca.pem, server.pem and server.key, DEVICE.pem and DEVICE.key.

    Run again, it uses the same CA: with --device it adds devices, with --host it makes the server's
    certificate anew.
    """
    if not 1 <= days <= MAX_DAYS:
        raise BadInput("--days", days, f"must lie between 1 and {MAX_DAYS}")
    from multispin.net.authority import Authority

    place = Path(folder)
    made = []
    authority = Authority.at(place)
    if host or not (place / "server.pem").exists():
        made += authority.make_server([*dict.fromkeys([*(host or []), *ALWAYS])], days)
    for name in dict.fromkeys(device or []):
        made += authority.make_device(name, days)
    for path in made:
        print(path)
    print(
        f"ca.key signs for whatever trusts {place / 'ca.pem'}: keep it off the server and devices",
        file=sys.stderr,
    )
