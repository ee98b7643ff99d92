"""Texts by where their tokens came from."""

from __future__ import annotations

from typing import Any

import numpy as np

from multispin.api.dashboard_texts import MAX_RUNS, MAX_TEXTS, TextLog
from multispin.lm.base import Vocabulary
from multispin.wire.frames import Close, Error, Verdict

BYTES = Vocabulary(bytes(range(256)), np.arange(257), frozenset())


def commit(
    log: TextLog, text: bytes, num_draft: int = 0, num_accepted: int = 0, **fields: Any
) -> None:
    device, session = fields.pop("device", 0), fields.pop("session", 0)
    verdict = Verdict(session, 0, 0, num_draft, num_accepted, len(text), 0, 4, **fields)
    log.committed(device, verdict, np.frombuffer(text, np.uint8).astype(np.int32), BYTES)


def runs(log: TextLog) -> list[tuple[str, str]]:
    [text] = log.news()
    return text.runs


def test_each_kind_of_token_is_told_apart() -> None:
    log = TextLog()
    commit(log, b"abc", num_draft=4, num_accepted=2)
    commit(log, b"de", num_draft=1, num_accepted=1)
    commit(log, b"f")
    commit(log, b"g", num_draft=3, num_accepted=0)
    commit(log, b"hi", num_draft=4, num_accepted=4, finish="length")  # it ended before them
    assert runs(log) == [
        *[("accepted", "ab"), ("correction", "c"), ("accepted", "d"), ("bonus", "e")],
        *[("alone", "f"), ("correction", "g"), ("accepted", "hi")],
    ]


def test_a_character_belongs_to_the_token_that_completes_it() -> None:
    log = TextLog()
    first, second = "ö".encode()[:1], "ö".encode()[1:]
    commit(log, b"a" + first, num_draft=2, num_accepted=2)
    commit(log, second)
    commit(log, b"\xff!")
    assert runs(log) == [("accepted", "a"), ("alone", "ö"), ("alone", "\ufffd!")]


def test_news_are_told_once_and_the_whole_is_what_was_told() -> None:
    log = TextLog()
    told = ""
    for word in (b"one ", b"two ", b"three "):
        commit(log, word)
        assert "".join(run for text in log.whole() for _, run in text.runs) == told
        told += "".join(run for _, run in runs(log))
        assert log.news() == []
    assert told == "one two three "
    assert [text.num_tokens for text in log.whole()] == [len(told)]


def test_texts_that_grow_keep_their_place_and_those_that_ended_give_it_up() -> None:
    log = TextLog()
    for device in range(MAX_TEXTS + 3):  # three come too late
        commit(log, b"a", device=device)
    assert log.kept == list(range(MAX_TEXTS))
    commit(log, b"b", device=4, finish="stop")
    log.up(2, Close(0))
    log.down(6, Error(0, "overloaded", ""))
    log.left(8)
    for device in range(20, 26):
        commit(log, b"c", device=device)
    gone = {2, 4, 6, 8}
    assert set(log.kept) == set(range(MAX_TEXTS + 4)) - gone
    commit(log, b"d", device=4)  # its next text, which finds no place
    assert len(log.kept) == MAX_TEXTS


def test_a_long_text_keeps_its_end() -> None:
    log = TextLog()
    for number in range(2 * MAX_RUNS):
        commit(log, b"ab", num_draft=1, num_accepted=1)
        if number % 300 == 0:
            log.news()
    [text] = log.news() and log.whole()
    assert len(text.runs) == MAX_RUNS and text.num_tokens == 4 * MAX_RUNS
