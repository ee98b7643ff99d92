"""Texts as they grow, in runs of tokens that came the same way. Only where the operator asks."""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import msgspec

from multispin.lm.base import Vocabulary
from multispin.net.observer import Observer
from multispin.types import FinishReason, TokenIds
from multispin.wire.frames import Close, Error, FromDevice, FromServer, Redirect, Verdict

MAX_TEXTS = 12  # a new text takes the place of one that has ended, or is not shown
MAX_RUNS = 600  # of a text: its end

# Where a token came from: the device's draft, the server after it (in place of a token that it
# rejected, or behind a draft that was right throughout), or the server without any draft.
Origin: TypeAlias = Literal["accepted", "correction", "bonus", "alone"]
Run: TypeAlias = tuple[Origin, str]


class TextNews(msgspec.Struct):
    """Of one text what is new; ``number`` counts the texts that were shown."""

    number: int
    device: int
    session: int
    num_tokens: int
    finish: FinishReason | None
    runs: list[Run]


@dataclass
class _Text:
    number: int
    device: int
    session: int
    runs: list[Run] = field(default_factory=list)
    news: list[Run] = field(default_factory=list)  # of the runs, since somebody was told
    num_tokens: int = 0
    finish: FinishReason | None = None
    has_news: bool = True
    decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    def add(self, origin: Origin, data: bytes) -> None:
        """A character is that of the token that completes it."""
        if text := self.decoder.decode(data):
            self.runs.append((origin, text))
            self.news.append((origin, text))
            del self.runs[:-MAX_RUNS], self.news[:-MAX_RUNS]

    def told(self, runs: list[Run]) -> TextNews:
        return TextNews(self.number, self.device, self.session, self.num_tokens, self.finish, runs)


class TextLog(Observer):
    """Each text from its first verdict on; those that have ended until others need the place."""

    def __init__(self) -> None:
        self._texts: dict[int, _Text] = {}
        self._growing: dict[tuple[int, int], _Text] = {}  # by device and session
        self._num_texts = 0

    # --- what is told --------------------------------------------------------------------------

    @property
    def kept(self) -> list[int]:
        return list(self._texts)

    def news(self) -> list[TextNews]:
        """What has come since the last call."""
        changed = [text for text in self._texts.values() if text.has_news]
        found = [text.told(text.news) for text in changed]
        for text in changed:
            text.news, text.has_news = [], False
        return found

    def whole(self) -> list[TextNews]:
        """All that was told before."""
        return [
            text.told(text.runs[: len(text.runs) - len(text.news)]) for text in self._texts.values()
        ]

    # --- what happens --------------------------------------------------------------------------

    def committed(
        self, device: int, verdict: Verdict, ids: TokenIds, vocabulary: Vocabulary
    ) -> None:
        """``ids``: accepted ones and, unless the text ended before, one of the server's own."""
        text = self._text(device, verdict.session)
        if text is None:
            return
        num_accepted = min(verdict.num_accepted, len(ids))
        if num_accepted:
            text.add("accepted", vocabulary.decode(ids[:num_accepted]))
        if num_accepted < len(ids):
            text.add(_own(verdict), vocabulary.decode(ids[num_accepted:]))
        text.num_tokens += len(ids)
        text.has_news = True
        if verdict.finish:
            text.finish = verdict.finish
            del self._growing[device, verdict.session]

    def _text(self, device: int, session: int) -> _Text | None:
        if (text := self._growing.get((device, session))) is not None:
            return text
        if len(self._texts) >= MAX_TEXTS:
            growing = {text.number for text in self._growing.values()}
            ended = next((number for number in self._texts if number not in growing), None)
            if ended is None:
                return None
            del self._texts[ended]
        text = self._growing[device, session] = _Text(self._num_texts, device, session)
        self._texts[text.number] = text
        self._num_texts += 1
        return text

    def left(self, device: int) -> None:
        for key in [key for key in self._growing if key[0] == device]:
            del self._growing[key]

    def up(self, device: int, frame: FromDevice) -> None:
        if isinstance(frame, Close):
            self._growing.pop((device, frame.session), None)

    def down(self, device: int, frame: FromServer) -> None:
        if isinstance(frame, Error | Redirect) and frame.session is not None:
            self._growing.pop((device, frame.session), None)


def _own(verdict: Verdict) -> Origin:
    if verdict.num_draft == 0:
        return "alone"
    return "correction" if verdict.num_accepted < verdict.num_draft else "bonus"
