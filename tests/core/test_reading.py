"""What a reader is shown: with whatever was provisional on the way, in the end the text."""

from __future__ import annotations

import random

import pytest

from multispin.core.reading import Reading, Replaces, extended
from multispin.core.text import TextStream

PIECES = ["a", "b", "ab", "\n", "é".encode()[:1], "é".encode()[1:], "stop", "st", ""]
BYTES = [piece if isinstance(piece, bytes) else piece.encode() for piece in PIECES]


class Reader:
    """Follows the rules of docs/http.md."""

    def __init__(self, num_prompt: int, stop: list[str]) -> None:
        self.reading = Reading(num_prompt, stop)
        self.num_prompt = num_prompt
        self.tokens: list[int] = []
        self.text = ""

    def show(self, begin: int, tokens: list[int]) -> None:
        data = b"".join(BYTES[token] for token in tokens)
        self.text = extended(self.text, self.reading.show(data, begin + len(tokens)), None)
        self.tokens += tokens

    def commit(self, start: int, kept: int, tokens: list[int], *, void: bool, final: bool) -> None:
        data = b"".join(BYTES[token] for token in tokens)
        end = start + len(tokens)
        news = self.reading.commit(data, start, kept, end, is_void=void, final=final)
        if news.replaces is not None:
            del self.tokens[news.replaces.token :]
        self.text = extended(self.text, news.text, news.replaces)
        self.tokens += tokens[news.num_shown :]


@pytest.mark.parametrize("stop", [[], ["stop"], ["ba\n"]])
@pytest.mark.parametrize("seed", range(40))
def test_in_the_end_the_reader_has_the_text_and_its_tokens(seed: int, stop: list[str]) -> None:
    rng = random.Random(seed)
    text = [rng.randrange(len(BYTES)) for _ in range(60)]
    reader, oracle = Reader(10, stop), TextStream(stop)
    expected, length, drafted = "", 0, []
    while length < len(text):
        if not drafted and rng.random() < 0.4:
            right = [rng.random() < 0.9 for _ in range(rng.randrange(1, 12))]
            drafted = [
                token if same else rng.randrange(len(BYTES))
                for same, token in zip(right, text[length:], strict=False)
            ]
            for at, token in enumerate(drafted):
                reader.show(10 + length + at, [token])
        new = text[length : length + rng.randrange(1, 6)]
        pairs = enumerate(zip(new, drafted, strict=False))
        kept = next((at for at, (a, b) in pairs if a != b), len(new))
        contradicted = kept < min(len(new), len(drafted))
        final = length + len(new) == len(text)
        reader.commit(10 + length, 10 + length + kept, new, void=contradicted or final, final=final)
        expected += oracle.push(b"".join(BYTES[token] for token in new), final=final)
        length += len(new)
        drafted = [] if contradicted else drafted[len(new) :]
        assert reader.text.startswith(expected)
        if not drafted:
            assert (reader.text, reader.tokens) == (expected, text[:length])


def test_what_is_confirmed_is_silent_and_what_is_not_is_replaced_from_its_place() -> None:
    reading = Reading(0, [])
    assert [reading.show(b"ab", 1), reading.show(b"cd", 2), reading.show(b"ef", 3)] == [
        *("ab", "cd", "ef")
    ]
    assert reading.commit(b"ab", 0, 1, 1, is_void=False) == ("", 1, None)
    assert reading.commit(b"cdxy", 1, 2, 3, is_void=True) == ("xy", 1, Replaces(2, 4))
    assert reading.commit(b"z", 3, 4, 4, is_void=False) == ("z", 0, None)
