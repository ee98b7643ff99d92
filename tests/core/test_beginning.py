"""What a session is placed by."""

from __future__ import annotations

from hashlib import blake2b

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from multispin.core.beginning import NUM_BYTES, NUM_CHARACTERS, beginning_of
from multispin.wire.frames import ChatMessage

LONG = st.text(min_size=NUM_CHARACTERS, max_size=NUM_CHARACTERS + 20)


def digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=8).digest()


@given(LONG, st.text(), st.text())
def test_what_comes_later_does_not_matter(begin: str, one: str, other: str) -> None:
    assert beginning_of(begin + one) == beginning_of(begin + other)
    first = ChatMessage("system", begin)
    later = [ChatMessage("user", one), ChatMessage("user", other)]
    assert beginning_of([first, *later]) == beginning_of([first, *reversed(later)])


def test_every_character_of_the_beginning_does() -> None:
    text = "x" * 2 * NUM_CHARACTERS
    others = {beginning_of(text[:at] + "y" + text[at + 1 :]) for at in range(len(text))}
    assert len(others) == NUM_CHARACTERS + 1
    assert beginning_of(text) in others


@given(st.lists(st.tuples(st.sampled_from(["system", "user"]), st.text(max_size=90)), min_size=1))
def test_of_a_chat_it_is_that_of_its_messages_as_json(turns: list[tuple[str, str]]) -> None:
    messages = [ChatMessage(role, content) for role, content in turns]
    whole = "".join(msgspec.json.encode(message).decode() for message in messages)
    assert beginning_of(messages) == digest(whole[:NUM_CHARACTERS])


def test_a_text_and_a_chat_are_told_apart_and_nothing_is_a_beginning_too() -> None:
    assert beginning_of("hi") == digest("hi") != beginning_of([ChatMessage("user", "hi")])
    assert len(beginning_of("")) == NUM_BYTES == 8
