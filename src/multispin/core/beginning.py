"""What a session is placed by: equal beginnings of one tenant share a replica, and its cache."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import msgspec

from multispin.wire.frames import ChatMessage

NUM_CHARACTERS = 256
NUM_BYTES = 8


def beginning_of(prompt: str | Sequence[ChatMessage]) -> bytes:
    """BLAKE2b-64 of the first NUM_CHARACTERS of a text, or of a chat's messages as JSON."""
    begin = prompt[:NUM_CHARACTERS] if isinstance(prompt, str) else _begin(prompt)
    return blake2b(begin.encode("utf-8", "surrogatepass"), digest_size=NUM_BYTES).digest()


def _begin(messages: Sequence[ChatMessage]) -> str:
    begin = ""
    for message in messages:  # of which there may be many
        begin += msgspec.json.encode(message).decode()
        if len(begin) >= NUM_CHARACTERS:
            break
    return begin[:NUM_CHARACTERS]
