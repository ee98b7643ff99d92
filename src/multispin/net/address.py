"""Where a server is, and what shows it who we are."""

from __future__ import annotations

import ipaddress
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from multispin.errors import BadInput
from multispin.net.tls import check_private, client_context

# As RFC 6750 has it: nothing that could end a header, or begin another.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{1,512}=*")
_REMEDY = "must be HOST:PORT, or https://HOST:PORT"


@dataclass(frozen=True)
class Address:
    """``tls`` is None where nothing is encrypted."""

    given: str  # as it was written, for messages
    host: str  # as in a URL, but without brackets
    port: int
    tls: ssl.SSLContext | None = None
    token: str = field(default="", repr=False)  # or the file that has it
    token_file: str = ""

    def __str__(self) -> str:
        return self.given

    @property
    def authority(self) -> str:
        """HOST:PORT, as in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        """Of the first request on a connection. The file may have another token by now."""
        token = _read_token(self.token_file) if self.token_file else self.token
        return {"Authorization": f"Bearer {token}"} if token else {}


def parse_address(
    given: str,
    option: str = "--server",
    *,
    token: str = "",
    token_file: str = "",
    ca: str | None = None,
    cert: str | None = None,
    key: str | None = None,
) -> Address:
    """HOST:PORT is plain on loopback and TLS elsewhere; http:// and https:// say which.

    ``ca``, ``cert`` and ``key`` are files, and mean TLS. A token leaves this machine over TLS only.
    Raise BadInput.
    """
    _check_token(token, "--token")
    if token_file:
        _read_token(token_file)
    scheme, host, port = _parts(given, option)
    files = {"--ca": ca, "--cert": cert, "--key": key}
    named = {option: file for option, file in files.items() if file}
    if scheme == "http" and named:
        name, file = next(iter(named.items()))
        raise BadInput(name, file, f"goes with TLS, and {given} says that there is none")
    local = is_loopback(host) and not host.endswith(".localhost")  # those, a resolver may place
    if scheme == "https" or named or (scheme == "" and not local):
        return Address(given, host, port, client_context(ca, cert, key), token, token_file)
    if (token or token_file) and not local:
        raise BadInput(
            option, given, f"a token would cross the network in the clear: write https://{host}…"
        )
    return Address(given, host, port, None, token, token_file)


def elsewhere(address: Address, server: str) -> Address:
    """Another ``server``, as one at this address names it, with what shows it who we are.

    Where this one has TLS, so has the other, and is checked as this one is; a token leaves this
    machine over TLS only. Raise BadInput for what is against that.
    """
    scheme, host, port = _parts(server, "redirect")
    local = is_loopback(host) and not host.endswith(".localhost")
    tls = address.tls
    if tls is not None:
        if scheme == "http":
            raise BadInput("redirect", server, f"has no TLS, and {address} has: not followed")
    elif scheme == "https" or (scheme == "" and not local):
        tls = client_context()
    elif (address.token or address.token_file) and not local:
        remedy = "a token would cross the network in the clear: not followed"
        raise BadInput("redirect", server, remedy)
    return Address(server, host, port, tls, address.token, address.token_file)


def _read_token(file: str) -> str:
    """The token in a file that nobody else can read."""
    field = "--token-file"
    check_private(file, field)
    if not Path(file).is_file():
        raise BadInput(field, file, "must be a file: it is read for each connection")
    try:
        token = Path(file).read_text("ascii").strip()
    except OSError as error:
        raise BadInput(field, file, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadInput(field, file, "holds no token") from None
    if not token:
        raise BadInput(field, file, "is empty")
    return _check_token(token, field)


def _check_token(token: str, field: str) -> str:
    if token and not _TOKEN.fullmatch(token):
        raise BadInput(field, "(not shown)", "is no token: it has characters that none has")
    return token


def is_loopback(host: str) -> bool:
    """Whether a name or an address, as it stands in a URL, can only be this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parts(given: str, option: str) -> tuple[str, str, int]:
    """Scheme ("" where none is written), host, port."""
    scheme, separator, rest = given.rpartition("://")
    shown = "(not shown)" if "@" in given else given  # there may be a password before it
    try:
        url = urlsplit(f"//{rest}")
        host, port = url.hostname or "", url.port
        host.encode("ascii" if ":" in host else "idna")
    except ValueError:  # a UnicodeError is one
        raise BadInput(option, shown, _REMEDY) from None
    is_bare = url.netloc == rest.removesuffix("/") and "@" not in rest
    is_known = scheme in ("http", "https") or not separator
    if not (is_known and is_bare and port and host and not re.search(r"[\s\\%]", rest)):
        raise BadInput(option, shown, _REMEDY)
    return scheme, host, port


def reason_of(error: Exception, *, over_tls: bool) -> str:
    """Why there is no connection, and what to write if it is a matter of TLS."""
    reason = "it does not answer in HTTP: perhaps it speaks TLS (https://…)"
    match error:
        case ssl.SSLCertVerificationError():
            told = error.verify_message.rstrip(".")
            of_name = "mismatch" in told
            remedy = "make one with `certs tls --host`" if of_name else "--ca names its CA"
            reason = f"its certificate is not trusted: {told}; {remedy}"
        case ssl.SSLError(reason="WRONG_VERSION_NUMBER" | "RECORD_LAYER_FAILURE"):
            reason = "it speaks no TLS: http://… says so"
        case ssl.SSLError(reason=str(said)) if "CERTIFICATE_REQUIRED" not in said:
            reason = f"no TLS with it: {said}"
        case OSError() if not isinstance(error, ConnectionResetError | ssl.SSLError):
            reason = str(error) or type(error).__name__
        case _ if over_tls:
            reason = "it ends the connection: perhaps it asks for a certificate (--cert and --key)"
    return reason
