"""From committed bytes to text: whole characters, and never the beginning of a stop sequence."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Feed bytes, get the text that may be shown.

    A stop sequence ends the text before it (``stopped`` turns True); the longest end of the text
    that could still become a stop sequence is held back until it is decided.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = [s for s in stop if s]
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False

    def copy(self) -> TextStream:
        """One that goes on from here by itself."""
        other = TextStream(self._stop)
        other._decoder.setstate(self._decoder.getstate())
        other._held, other.stopped = self._held, self.stopped
        return other

    def push(self, data: bytes, *, final: bool = False) -> str:
        """The text that has become certain; with ``final``, everything that is left."""
        if self.stopped:
            return ""
        text = self._held + self._decoder.decode(data, final)
        self._held = ""
        found = [at for at in (text.find(s) for s in self._stop) if at >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        if final:
            return text
        keep = max((_overlap(text, s) for s in self._stop), default=0)
        if keep:
            text, self._held = text[:-keep], text[-keep:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of ``stop`` that ends ``text``."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
