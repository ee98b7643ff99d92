"""TLS contexts: 1.3 or 1.2, ciphers with forward secrecy, no renegotiation, no compression."""

from __future__ import annotations

import os
import ssl
import stat
from pathlib import Path

from multispin.errors import BadInput

# For 1.2 alone: those of 1.3 all are as good.
CIPHERS_1_2 = "ECDHE+AESGCM:ECDHE+CHACHA20"


def server_context(cert: str, key: str, client_ca: str | None = None) -> ssl.SSLContext:
    """With ``client_ca``, a client must show a certificate of that CA, made for clients.

    Raise BadInput for a file that is none of what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _restrict(context)
    _load_cert(context, cert, key)
    if client_ca:
        _load_ca(context, client_ca, "--client-ca")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(
    ca: str | None = None, cert: str | None = None, key: str | None = None
) -> ssl.SSLContext:
    """Trusts ``ca`` alone, or what the system trusts; the server's name is checked.

    Raise BadInput for a file that is none of what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _restrict(context)
    if ca:
        _load_ca(context, ca, "--ca")
    else:
        context.load_default_certs()
    if cert and key:
        _load_cert(context, cert, key)
    elif cert or key:
        field, other = ("--cert", "--key") if cert else ("--key", "--cert")
        raise BadInput(field, cert or key, f"goes with {other}")
    return context


def check_private(file: str | Path, field: str) -> None:
    """Raise BadInput if others may read a file that holds a secret, or change what it says."""
    try:
        mode = os.stat(file).st_mode
    except OSError as error:
        raise BadInput(field, file, f"cannot be read: {error.strerror}") from None
    if os.name == "posix" and mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise BadInput(
            field, file, f"is open to others on this machine: `chmod 600 {file}` (or 640)"
        )


def _restrict(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS_1_2)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION


def _load_ca(context: ssl.SSLContext, file: str, field: str) -> None:
    try:
        context.load_verify_locations(file)
    except ssl.SSLError:
        raise BadInput(field, file, "holds no certificates in PEM form") from None
    except OSError as error:
        raise BadInput(field, file, f"cannot be read: {error.strerror}") from None


def _load_cert(context: ssl.SSLContext, cert: str, key: str) -> None:
    check_private(key, "--key")
    try:
        # A password, so that nobody is asked for one at the terminal.
        context.load_cert_chain(cert, key, password="")
    except ssl.SSLError as error:
        remedy = f"and {key} are no certificate and its key, in PEM form and without a password"
        raise BadInput("--cert", cert, f"{remedy} ({error.reason or 'unreadable'})") from None
    except OSError as error:
        raise BadInput("--cert", cert, f"cannot be read: {error.strerror}") from None
