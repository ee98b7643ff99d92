"""The access tokens of a running server: looked up, read again when they change, and outlived by
nothing that was begun with them."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from multispin.errors import BadInput
from multispin.net.token_file import TokenEntry, read_tokens, token_hash

log = logging.getLogger("multispin.tokens")

LOOK_S = 1.0  # between two looks at the file; nothing goes on for longer with a revoked token


class Tokens:
    """Raise BadInput if the file cannot be used at the start; later, the old state stays."""

    def __init__(self, file: str, clock: Callable[[], float] = time.time) -> None:
        self._file = Path(file)
        self._clock = clock
        self._stamp = self._look()
        self._entries = frozenset(read_tokens(self._file, "--tokens"))
        self._lives: dict[asyncio.Timeout, TokenEntry] = {}

    def find(self, token: bytes) -> TokenEntry | None:
        """The valid one, in a time that tells nothing of what is in the file but its length."""
        wanted = token_hash(token)
        found = None
        for entry in self._entries:
            if hmac.compare_digest(entry.sha256, wanted):
                found = entry
        return found if found and not found.has_expired(self._clock()) else None

    @contextlib.asynccontextmanager
    async def while_valid(self, entry: TokenEntry) -> AsyncIterator[asyncio.Timeout]:
        """Raises TimeoutError within when the token is revoked, changed, or has expired."""
        async with asyncio.timeout(None) as life:
            self._lives[life] = entry
            try:
                yield life
            finally:
                del self._lives[life]

    async def watch(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.refresh()

    def refresh(self) -> None:
        """Read the file if it has changed, and end what goes on with tokens that are void."""
        if (stamp := self._look()) != self._stamp:
            self._stamp = stamp
            self._read()
        now = self._clock()
        for life, entry in self._lives.items():
            is_void = entry not in self._entries or entry.has_expired(now)
            if is_void and not life.expired():
                life.reschedule(asyncio.get_running_loop().time())

    def _read(self) -> None:
        try:
            self._entries = frozenset(read_tokens(self._file, "--tokens"))
            log.info("tokens_read", extra={"fields": {"num_tokens": len(self._entries)}})
        except BadInput as error:
            log.error("tokens_kept: %s", error)

    def _look(self) -> tuple[int, ...] | None:
        """What changes when the file does."""
        try:
            stat = os.stat(self._file)
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino, stat.st_size, stat.st_mode
