"""The file of access tokens: who may come in, for what, until when, and how much they may have.

It holds no token, but the SHA-256 of each. Passwords want a slow hash because people choose few of
them; a token is 256 random bits, and no speed of hashing makes those worth trying.

A file is replaced as a whole, under a lock: a reader sees the one before or the one after.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec
from filelock import FileLock, Timeout

from multispin.core.tenant import TOKEN_PREFIX, Scope, Tenant, TenantLimits
from multispin.errors import BadInput
from multispin.net.tls import check_private

TOKEN_BYTES = 32
MAX_TOKENS = 4096
LOCK_TIMEOUT_S = 10.0
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"

AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]


class TokenEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A token, as far as the server knows it."""

    name: Annotated[str, msgspec.Meta(pattern=_NAME)]
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    scopes: Annotated[tuple[Scope, ...], msgspec.Meta(min_length=1)]
    expires: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    max_sessions: AtLeastOne | None = None
    max_prompt_tokens: AtLeastOne | None = None
    max_draft_length: Annotated[int, msgspec.Meta(ge=0)] | None = None
    requests_per_s: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None

    @property
    def tenant(self) -> Tenant:
        limits = TenantLimits(
            self.max_sessions, self.max_prompt_tokens, self.max_draft_length, self.requests_per_s
        )
        return Tenant(self.name, frozenset(self.scopes), limits)

    def has_expired(self, now: float) -> bool:
        """``now`` in seconds since 1970, UTC."""
        return self.expires is not None and self.expires.timestamp() <= now


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tokens: list[TokenEntry]


def new_token() -> str:
    return TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)


def token_hash(token: bytes) -> str:
    return hashlib.sha256(token).hexdigest()


def read_tokens(file: Path, field: str) -> list[TokenEntry]:
    """Raise BadInput if it cannot be read, is none, or is open to others."""
    check_private(file, field)
    try:
        tokens = msgspec.json.decode(file.read_bytes(), type=_File).tokens
    except OSError as error:
        raise BadInput(field, file, f"cannot be read: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(field, file, f"is no file of `multispin tokens`: {error}") from None
    for names in ([entry.name for entry in tokens], [entry.sha256 for entry in tokens]):
        if len(set(names)) < len(names):
            raise BadInput(field, file, "names a token twice")
    return tokens


def add_token(file: Path, entry: TokenEntry, field: str) -> None:
    """Raise BadInput if there is one of this name, or no room."""
    with _changing(file, field) as tokens:
        if any(one.name == entry.name for one in tokens):
            raise BadInput("NAME", entry.name, "is there already: revoke it, or take another name")
        if len(tokens) >= MAX_TOKENS:
            raise BadInput(field, file, f"has {MAX_TOKENS} tokens, and can have no more")
        tokens.append(entry)


def revoke_token(file: Path, name: str, field: str) -> None:
    """Raise BadInput if there is none of this name."""
    if not file.exists():
        raise BadInput(field, file, "is not there: `multispin tokens add` makes it")
    with _changing(file, field) as tokens:
        left = [one for one in tokens if one.name != name]
        if len(left) == len(tokens):
            raise BadInput("NAME", name, "no token has this name: `multispin tokens list`")
        tokens[:] = left


@contextmanager
def _changing(file: Path, field: str) -> Iterator[list[TokenEntry]]:
    """The entries; what becomes of them is written when the caller is done."""
    file = file.resolve()  # where a link leads to, so that it goes on leading there
    try:
        with FileLock(f"{file}.lock", timeout=LOCK_TIMEOUT_S, mode=0o600):
            tokens = read_tokens(file, field) if file.exists() else []
            yield tokens
            _replace(file, msgspec.json.format(msgspec.json.encode(_File(tokens))) + b"\n")
    except Timeout:
        raise BadInput(field, file, "is being changed by somebody else: try again") from None
    except OSError as error:
        raise BadInput(field, file, f"cannot be written: {error.strerror}") from None


def _replace(file: Path, data: bytes) -> None:
    """As a whole, readable by its owner; who could read it before still can."""
    descriptor, name = tempfile.mkstemp(prefix=f"{file.name}.", dir=file.parent)
    try:
        with os.fdopen(descriptor, "wb") as temporary:
            if file.exists():
                before = file.stat()
                os.chmod(name, before.st_mode & 0o640)
                with contextlib.suppress(PermissionError):
                    os.chown(name, before.st_uid, before.st_gid)
            temporary.write(data)
            temporary.flush()
            os.fsync(temporary.fileno())
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise
