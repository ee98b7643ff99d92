"""What the reader of a text has been shown: what is committed, and at times more than that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from multispin.core.text import TextStream


class Replaces(msgspec.Struct, frozen=True):
    """From here on, counted from the beginning of the answer, all that was shown is void."""

    token: int
    character: int


def extended(shown: str, text: str, replaces: Replaces | None) -> str:
    """What a reader has before him who was shown so much and then this."""
    return (shown if replaces is None else shown[: replaces.character]) + text


class News(NamedTuple):
    """What the reader gets to see of committed tokens: the first ``num_shown`` of them stood there
    already, as provisional ones."""

    text: str
    num_shown: int
    replaces: Replaces | None


class Reading:
    """Positions are of tokens, the prompt included; ``end`` is that of what has been shown."""

    def __init__(self, num_prompt: int, stop: Sequence[str]) -> None:
        self.end = num_prompt
        self._num_prompt = num_prompt
        self._committed = TextStream(stop)
        self._num_characters = 0  # committed
        self._ahead: TextStream | None = None  # of the provisional text
        self._text_ahead = ""  # shown, and not committed

    @property
    def has_stopped(self) -> bool:
        """Whether the provisional text has come to a stop sequence."""
        return self._ahead is not None and self._ahead.stopped

    def show(self, data: bytes, end: int) -> str:
        """Provisional tokens, the bytes of those between the last ``end`` and this one."""
        if self._ahead is None:
            self._ahead = self._committed.copy()
        text = self._ahead.push(data)
        self._text_ahead += text
        self.end = end
        return text

    def commit(
        self, data: bytes, start: int, kept: int, length: int, *, is_void: bool, final: bool = False
    ) -> News:
        """The text is committed from ``start`` to ``length``, up to ``kept`` as it was drafted.

        ``is_void``: whatever was shown beyond these tokens is no part of it.
        """
        text = self._committed.push(data, final=final)
        if self.end <= start:
            self._num_characters += len(text)
            self.end = length
            return News(text, 0, None)
        num_shown = min(self.end, kept, length) - start
        num_same = _num_same(text, self._text_ahead)
        is_replaced = is_void and (
            self.end > start + num_shown or self._text_ahead[num_same:] != ""
        )
        replaces = None
        if is_replaced:
            token = start + num_shown - self._num_prompt
            replaces = Replaces(token, self._num_characters + num_same)
        self._num_characters += len(text)
        self._text_ahead = "" if is_void else self._text_ahead[num_same:]
        self.end = length if is_void else max(self.end, length)
        if self.end == length:
            self._ahead = None
        return News(text[num_same:], num_shown, replaces)


def _num_same(one: str, other: str) -> int:
    """Length of the longest common beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
