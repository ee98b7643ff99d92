"""A device's session between two links, frame by frame."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from multispin.core.batch import BatchLimits
from multispin.core.device import DeviceSession
from multispin.core.welcome import welcome
from multispin.errors import PeerError
from multispin.lm.ngram import byte_vocabulary
from multispin.wire import frames
from multispin.wire.frames import Draft, Opened, PrefixDigest, Resume, Verdict, Welcome
from tests.core.harness import PROMPT, Harness, Writer, new_drafter, new_server, request

BITS = frames.id_bits(byte_vocabulary().size)


def begun(**fields: object) -> tuple[Harness, DeviceSession]:
    """In mode window, with an infallible drafter."""
    harness = new_server(batch=BatchLimits())
    message = request(max_tokens=64, draft_length=8, **fields)  # type: ignore[arg-type]
    session = Writer(harness, message, new_drafter("same"), "link").session
    session._calibration.acceptance[:] = 1.0
    return harness, session


def drafted(session: DeviceSession, num_tokens: int, seconds: float = 0.0) -> list[int]:
    ids: list[int] = []
    for _ in range(num_tokens):
        job = session.job()
        assert job is not None
        it = session.draft(job)
        session.add(job, it, seconds)
        ids += it.ids.tolist()
    return ids


def ids_of(draft: Draft) -> list[int]:
    return frames.unpack_tokens(draft.tokens, BITS, byte_vocabulary().size)[0]


def again(harness: Harness, session: DeviceSession, seen_later: list[int]) -> Opened:
    """What a server answers that committed these meanwhile."""
    return Opened(3, b"", 8, 0, b"secret", frames.pack_ids(seen_later, BITS))


def resumed(harness: Harness, session: DeviceSession, seen_later: list[int]) -> None:
    now: Welcome = welcome(harness.core)
    session.resume(session.reopening(3, now), again(harness, session, seen_later), now)


@pytest.mark.parametrize("num_seen", [0, 2, 5, 7])
def test_what_was_drafted_and_is_still_right_is_sent_again(num_seen: int) -> None:
    harness, session = begun(rule="rejection")
    right = drafted(session, 5, 0.01)
    session.message()
    resumed(harness, session, [*right, 65, 66][:num_seen])
    if num_seen >= 5:
        assert not session.owes_message
        return
    draft = session.message()
    assert ids_of(draft) == right[num_seen:]
    assert (draft.session, draft.epoch, draft.start) == (3, 0, len(PROMPT) + num_seen)
    text = [*PROMPT.encode(), *right[:num_seen]]
    assert draft.digest == PrefixDigest(text).digest()
    assert len(draft.proposals) == 5 - num_seen
    assert draft.drafting == 100 * (5 - num_seen)  # in units of 100 us


def test_what_was_drafted_and_is_wrong_by_now_is_not() -> None:
    harness, session = begun()
    right = drafted(session, 5)
    session.message()
    resumed(harness, session, [right[0], right[1] ^ 1])
    assert not session.owes_message
    assert session.committed == [right[0], right[1] ^ 1]
    new = drafted(session, 2)
    draft = session.message()
    assert (ids_of(draft), draft.epoch) == (new, 0)


def test_each_proposal_goes_with_its_token() -> None:
    _, session = begun(rule="rejection")
    for num_tokens in (2, 1, 3):
        expected = []
        for _ in range(num_tokens):
            job = session.job()
            assert job is not None
            it = session.draft(job)
            session.add(job, it, 0.0)
            expected += [frames.pack_ids(proposal.ids, BITS) for proposal in it.proposals]
        assert [packed for packed, _ in session.message().proposals] == expected


def test_the_time_that_drafting_took_is_told_for_the_tokens_that_are_sent() -> None:
    harness, session = begun()
    session.go_on_alone()
    drafted(session, 20, 0.01)
    resumed(harness, session, [])
    draft = session.message()
    assert (len(ids_of(draft)), draft.drafting) == (8, 800)  # in units of 100 us
    assert not session.owes_message  # until something is committed


def test_a_resumption_says_where_the_device_stands() -> None:
    harness, session = begun()
    resumed(harness, session, [70, 71])
    text = [*PROMPT.encode(), 70, 71]
    expected = Resume(9, b"secret", len(text), PrefixDigest(text).digest())
    assert session.resumption(9) == expected
    order = session.reopening(9, welcome(harness.core))
    assert frames.unpack_ids(order.committed, BITS, 257).tolist() == [70, 71]


def test_another_server_may_have_another_mode_and_more_or_less_room() -> None:
    harness, session = begun()
    small = msgspec.structs.replace(
        welcome(harness.core), mode="rounds", context_length=40, max_draft_length=2
    )
    order = session.reopening(3, small)
    assert order.draft_length == 2
    session.resume(order, again(harness, session, [70]), small)
    assert not session.is_window
    with pytest.raises(PeerError, match="more than was asked for"):
        session.resume(order, again(harness, session, [70] * 8), small)
    large = msgspec.structs.replace(small, context_length=4096)
    session.resume(order, again(harness, session, [70] * 60), large)
    assert len(session.committed) == 61


@pytest.mark.parametrize("rule", ["coupled", "rejection"])
def test_what_was_drafted_alone_beyond_a_smaller_context_is_dropped(rule: str) -> None:
    harness, session = begun(rule=rule)
    session.go_on_alone()
    right = drafted(session, 20)
    small = msgspec.structs.replace(welcome(harness.core), context_length=len(PROMPT) + 6)
    opened = msgspec.structs.replace(again(harness, session, []), draft_length=5)
    session.resume(session.reopening(3, small), opened, small)
    assert session.job() is None
    assert ids_of(session.message()) == right[:6]
    assert len(session._proposals) == (6 if rule == "rejection" else 0)


@pytest.mark.parametrize("token", [-1, byte_vocabulary().size, 1 << 40])
def test_a_verdict_with_a_token_that_there_is_not_is_refused(token: int) -> None:
    _, session = begun()
    verdict = Verdict(0, 0, len(PROMPT), 0, 0, 1, token, 4)
    with pytest.raises(PeerError, match="fits no draft"):
        session.apply(verdict, 0.0)
    assert session.committed == []


@pytest.mark.parametrize("length", [-1, 1 << 40])
def test_a_grant_beyond_what_was_asked_for_is_refused(length: int) -> None:
    _, session = begun()
    with pytest.raises(PeerError, match="fits no draft"):
        session.apply(Verdict(0, 0, len(PROMPT), 0, 0, 1, ord("a"), length), 0.0)
    assert session.committed == []


def test_a_server_that_reads_the_prompt_otherwise_is_another() -> None:
    harness, session = begun()
    now = welcome(harness.core)
    other = np.frombuffer(PROMPT.encode()[::-1], np.uint8)
    opened = msgspec.structs.replace(
        again(harness, session, []), prompt_ids=frames.pack_ids(other, BITS)
    )
    with pytest.raises(PeerError) as caught:
        session.resume(session.reopening(3, now), opened, now)
    assert caught.value.code == "target_changed"
