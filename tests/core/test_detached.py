"""What is kept of a session whose link is lost, and what can be brought along to another server."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import pytest

from multispin.core.detached import MAX_DETACHED, RESUME_S
from multispin.core.limits import ServerLimits
from multispin.core.server import ServerCore
from multispin.core.tenant import Tenant
from multispin.lm.ngram import END_OF_TEXT
from multispin.wire import frames
from multispin.wire.frames import Draft, Error, Opened, PrefixDigest, Resume
from tests.core import test_json_schema
from tests.core.harness import (
    PROMPT,
    FakeClock,
    Harness,
    Writer,
    new_engine,
    new_server,
    request,
)
from tests.core.test_server import alone
from tests.core.test_window import WINDOW
from tests.core.travel import Traveller


class Stranded(NamedTuple):
    """A session with some tokens committed, all of which its device has seen."""

    harness: Harness
    traveller: Traveller
    token: bytes

    @property
    def known(self) -> list[int]:
        return [*PROMPT.encode(), *self.traveller.committed]

    def answer(self, link: str = "new", **changes: object) -> Opened | Error:
        """To the device that comes back."""
        known = self.known
        message = Resume(3, self.token, len(known), PrefixDigest(known).digest())
        if link not in self.harness.links:
            self.harness.connect(link)
        [(_, frame)] = self.harness.resume(msgspec.structs.replace(message, **changes), link)
        return frame


def stranded(num_tokens: int = 5, **fields: object) -> Stranded:
    harness = new_server(batch=WINDOW)
    traveller = Traveller("t", request(max_tokens=40, **fields), None)
    traveller.open(harness)
    for _ in range(num_tokens):
        [(_, verdict)] = harness.step()
        traveller.down.append(verdict)
        traveller.deliver_down()
    assert len(traveller.committed) == num_tokens
    [(_, opened), *_] = harness.sent
    return Stranded(harness, traveller, opened.resume)


def test_a_detached_session_generates_nothing_and_holds_no_sequence() -> None:
    harness, traveller, _ = case = stranded()
    harness.drop(traveller.link)
    assert harness.core.num_sessions == 0
    assert harness.step() is None
    assert harness.core.num_detached == 1
    assert isinstance(case.answer(), Opened)
    assert harness.core.num_detached == 0


def test_a_session_is_taken_from_a_link_that_the_server_takes_for_alive() -> None:
    harness, traveller, _ = case = stranded()
    batch = harness.core.next_batch()  # it is being verified
    opened = case.answer()
    assert isinstance(opened, Opened)
    assert opened.session == 3
    assert harness.complete(harness.engine.step(batch)) == []
    [(link, verdict)] = harness.step()
    assert (link, verdict.session, verdict.start) == ("new", 3, len(case.known))
    harness.drop(traveller.link)  # it notices at last
    assert harness.core.num_sessions == 1


def test_drafts_that_arrive_on_the_link_it_was_taken_from_are_ignored() -> None:
    """They were sent before their device knew: an error would count as its offence."""
    harness, traveller, _ = case = stranded(draft_length=4)
    draft = Draft(0, 0, len(case.known), PrefixDigest(case.known).digest(), b"")
    assert isinstance(case.answer(), Opened)
    assert harness.draft(draft, traveller.link) == []
    assert harness.core.counters.num_stale_drafts == 1
    assert harness.core.num_sessions == 1


def test_what_was_not_seen_is_told() -> None:
    harness, traveller, _ = case = stranded()
    unseen = [harness.step()[0][1].token for _ in range(4)]
    harness.drop(traveller.link)
    opened = case.answer()
    assert opened.prompt_ids == b""
    assert opened.committed == frames.pack_ids(unseen, harness.core.id_bits)
    assert opened.text == bytes(unseen)
    [(_, verdict)] = harness.step()
    assert verdict.start == len(case.known) + 4


def test_a_token_is_a_secret_of_its_own_and_good_again_after_the_next_break() -> None:
    case, other = stranded(), stranded()
    token = case.token
    assert len(token) == 16
    assert token != other.token
    for number in range(3):
        case.harness.drop(f"link {number}" if number else case.traveller.link)
        assert case.answer(f"link {number + 1}").resume == token


@pytest.mark.parametrize("token", [b"", b"x", bytes(16)])
def test_a_token_that_nobody_has_is_unknown(token: bytes) -> None:
    case = stranded()
    case.harness.drop(case.traveller.link)
    assert case.answer(token=token).code == "unknown_session"


def test_without_a_source_of_secrets_nothing_can_be_resumed() -> None:
    engine = new_engine()
    harness = Harness(engine, ServerCore(engine.info, ServerLimits(), FakeClock()))
    [(_, opened)] = harness.open(request())
    assert opened.resume == b""
    harness.connect("other")
    [(_, error)] = harness.resume(Resume(0, b"", 0, b""), "other")
    assert error.code == "unknown_session"
    assert harness.core.num_sessions == 1
    harness.drop("link")
    assert harness.core.num_detached == 0


def test_nobody_else_can_go_on_with_a_session() -> None:
    case = stranded()
    thief = Tenant("thief", frozenset({"generate"}))
    case.harness.connect("thief", thief)
    assert case.answer("thief").code == "unknown_session"
    assert case.harness.core.num_sessions == 1  # and it is not disturbed
    case.harness.drop(case.traveller.link)
    assert case.answer("thief").code == "unknown_session"
    assert isinstance(case.answer(), Opened)


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": bytes(8)},
        {"length": len(PROMPT)},
        {"length": len(PROMPT) - 1},
        {"length": 10_000},
        {"length": -1},
    ],
)
def test_a_device_that_stands_elsewhere_is_refused(changes: dict) -> None:
    case = stranded()
    case.harness.drop(case.traveller.link)
    assert case.answer(**changes).code == "digest_mismatch"
    assert isinstance(case.answer(), Opened)  # the session is still there


def test_the_number_of_a_resumed_session_must_be_free() -> None:
    case = stranded()
    case.harness.drop(case.traveller.link)
    case.harness.open(request(3), "new")
    assert case.answer().code == "out_of_order"
    assert isinstance(case.answer(session=4), Opened)


def test_sessions_that_ended_are_not_kept() -> None:
    closed, judged, finished = stranded(), stranded(), stranded(num_tokens=40)
    judged.harness.core.next_batch()  # it is closed while it is being verified
    for case in closed, judged:
        case.harness.core.close(case.traveller.link, frames.Close(0))
    for case in closed, judged, finished:
        case.harness.drop(case.traveller.link)
        assert case.harness.core.num_detached == 0
        assert case.answer().code == "unknown_session"


def test_a_session_is_kept_for_a_while_only() -> None:
    case = stranded()
    case.harness.drop(case.traveller.link)
    clock = case.harness.core._clock
    clock.now += RESUME_S - 1
    assert isinstance(case.answer(), Opened)
    case.harness.drop("new")
    clock.now += RESUME_S + 1
    assert case.answer().code == "unknown_session"
    assert case.harness.core.num_detached == 0


def test_so_many_sessions_are_kept_and_no_more() -> None:
    harness = new_server(max_waiting=MAX_DETACHED + 9)
    tokens = []
    for number in range(MAX_DETACHED + 9):
        [(_, opened)] = harness.open(request(number, seed=number))
        tokens.append(opened.resume)
    harness.drop("link")
    assert harness.core.num_detached == MAX_DETACHED
    prompt = PROMPT.encode()
    for token, is_kept in (tokens[8], False), (tokens[9], True):
        harness.connect("new")
        resume = Resume(0, token, len(prompt), PrefixDigest(prompt).digest())
        [(_, answer)] = harness.resume(resume, "new")
        assert isinstance(answer, Opened) == is_kept


# --- a text that is brought along --------------------------------------------------------------


def test_what_is_brought_along_can_be_gone_on_with_anywhere() -> None:
    """Cut at every place, and on a server that has never heard of the text."""
    message = request(max_tokens=12, repetition_penalty=1.2)
    whole = alone(message)
    for cut in range(12):
        harness = new_server(batch=WINDOW)
        packed = frames.pack_ids(whole[:cut], harness.core.id_bits)
        [(_, opened)] = harness.open(msgspec.structs.replace(message, committed=packed))
        assert opened.prompt_ids == frames.pack_ids(PROMPT.encode(), harness.core.id_bits)
        further = []
        while (sent := harness.step()) is not None:
            further += [(verdict.start, verdict.token) for _, verdict in sent]
        assert further == list(enumerate(whole[cut:], len(PROMPT) + cut))


@pytest.mark.parametrize(
    ("ids", "named"),
    [
        (range(40), "40 tokens"),
        (range(100), "100 tokens"),
        ([65, END_OF_TEXT], "has ended"),
        ([65, 66, 67], "has ended"),  # the stop sequence
        ([65, 300], "vocabulary"),
    ],
)
def test_a_text_that_cannot_be_gone_on_with_is_refused_by_name(ids: list, named: str) -> None:
    harness = new_server()
    message = request(max_tokens=40, stop=("BC",))
    packed = frames.pack_ids(ids, harness.core.id_bits)
    [(_, error)] = harness.open(msgspec.structs.replace(message, committed=packed))
    assert error.code == "bad_input"
    assert error.message.startswith("committed = ")
    assert named in error.message
    assert harness.core.num_sessions == 0


def test_a_text_that_does_not_follow_its_schema_ends_alone() -> None:
    harness = new_server(batch=WINDOW)
    message = test_json_schema.wanted(0)
    packed = frames.pack_ids(b'{"nothing of the kind', harness.core.id_bits)
    harness.open(msgspec.structs.replace(message, committed=packed), "bad")
    writer = Writer(harness, test_json_schema.wanted(1), None, "good")
    errors = []
    while not writer.session.finish:
        for link, frame in harness.step() or []:
            if link == "good":
                writer.take(frame)
            else:
                errors.append(frame.code)
    assert errors == ["engine_failed"]
    assert writer.session.committed == test_json_schema.alone(test_json_schema.wanted(1))


def test_a_text_that_fills_the_context_cannot_be_gone_on_with() -> None:
    harness = new_server(new_engine(context_length=64))
    for num_tokens, kind in (31, Opened), (32, Error):
        packed = frames.pack_ids([65] * num_tokens, harness.core.id_bits)
        message = request(num_tokens, prompt="x" * 32, max_tokens=500)
        [(_, answer)] = harness.open(msgspec.structs.replace(message, committed=packed))
        assert isinstance(answer, kind)
