"""What `serve` asks of whoever connects: off loopback TLS and access tokens, unless --insecure."""

from __future__ import annotations

import ipaddress
import logging
from typing import TYPE_CHECKING

from multispin.errors import BadInput

if TYPE_CHECKING:
    from multispin.api.serving import Protection

log = logging.getLogger("multispin.serve")


def protection(
    host: str,
    *,
    cert: str | None,
    key: str | None,
    client_ca: str | None,
    tokens: str | None,
    insecure: bool,
) -> Protection:
    """Raise BadInput for what is missing or cannot be used. Says in the log what is open."""
    from multispin.api.serving import Protection
    from multispin.net.tls import server_context
    from multispin.net.tokens import Tokens

    local = _is_local(host)
    for field, value, other in (("--cert", cert, key), ("--key", key, cert)):
        if value and not other:
            raise BadInput(field, value, f"goes with {'--key' if field == '--cert' else '--cert'}")
    if client_ca and not cert:
        raise BadInput("--client-ca", client_ca, "goes with --cert and --key")
    lacking = [
        what
        for what, there in (("TLS (--cert, --key)", cert), ("access tokens (--tokens)", tokens))
        if not there
    ]
    if lacking and not local:
        _check_lacking(host, " and ".join(lacking), insecure)
    return Protection(
        server_context(cert, key, client_ca) if cert and key else None,
        Tokens(tokens) if tokens else None,
    )


def _check_lacking(host: str, lacking: str, insecure: bool) -> None:
    if not insecure:
        raise BadInput(
            "--host",
            host,
            f"off loopback anybody could read or use it without {lacking}: give them, or write "
            "--insecure if the network is yours alone",
        )
    log.warning("insecure", extra={"fields": {"host": host, "lacking": lacking}})


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise BadInput("--host", host, "must be an IP address or localhost") from None
