import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multispin.errors import PeerError
from multispin.types import SamplingParams
from multispin.wire import frames
from multispin.wire.frames import (
    ChatMessage,
    Draft,
    Find,
    Hello,
    Open,
    Opened,
    PrefixDigest,
    Redirect,
    Resume,
    TokenLogprobs,
    Verdict,
    Welcome,
    Wish,
)

CHAT = [
    ChatMessage("user", "hi", name="ann"),
    ChatMessage("assistant", None, tool_calls=[{"id": "c", "function": {"name": "f"}}]),
    ChatMessage("tool", "no", tool_call_id="c"),
]
DOCS = Path(__file__).parents[2] / "docs" / "protocol.md"


@given(st.integers(2, 300_000), st.data())
def test_packed_ids_come_back(size: int, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, size - 1), max_size=40))
    bits = frames.id_bits(size)
    packed = frames.pack_ids(np.array(ids, np.int32), bits)
    assert frames.pack_ids(ids, bits) == packed
    assert len(packed) == -(-len(ids) * bits // 8)
    assert frames.unpack_ids(packed, bits, size).tolist() == ids


def test_an_id_outside_the_vocabulary_is_refused() -> None:
    packed = frames.pack_ids([5, 151_936], 18)
    with pytest.raises(PeerError, match="151936") as caught:
        frames.unpack_ids(packed, 18, 151_936)
    assert caught.value.code == "bad_frame"


def test_a_coupled_draft_of_eight_tokens_is_at_most_48_bytes() -> None:
    digest = PrefixDigest()
    digest.update(range(30_000))
    ids = np.arange(151_000, 151_008, dtype=np.int32)
    tokens = frames.pack_tokens(ids, np.arange(8, dtype=np.uint8), frames.id_bits(151_936))
    frame = Draft(60_000, 60_000, 30_000, digest.digest(), tokens, drafting=4_000)
    assert len(digest.digest()) == 8
    assert len(tokens) == 21
    assert len(frames.encode(frame)) <= 48


def test_the_digest_depends_on_every_token_and_not_on_the_portions() -> None:
    whole, parts, other = PrefixDigest(), PrefixDigest(), PrefixDigest()
    whole.update([1, 2, 3])
    parts.update([1])
    parts.update(np.array([2, 3], np.int32))
    other.update([1, 3, 2])
    assert whole.digest() == parts.digest() != other.digest()


@pytest.mark.parametrize(
    "frame",
    [
        Hello(1, "lookup"),
        Hello(1, "lookup", cell="north"),
        Find(1, b"8" * 8),
        Find(1, b"", Wish("chat", 0.05, 1.5, 2e-6, 3), "a:1", ["a:1", "https://b:2"]),
        Open(6, "text", SamplingParams(), "greedy", 7, 16, 4, is_placed=True),
        Open(1, "text", SamplingParams(logit_bias={3: 1.0}), "coupled", 7, 16, 4, ["\n"], True),
        Open(2, [frames.ChatMessage("user", "hi")], SamplingParams(), "greedy", 7, 16, 4),
        Open(3, CHAT, SamplingParams(), "greedy", 7, 16, 4, num_logprobs=20, json_schema="{}"),
        Open(4, CHAT, SamplingParams(), "greedy", 7, 16, 4, tools='[{"type":"function"}]'),
        Open(5, CHAT, SamplingParams(), "greedy", 7, 16, 4, committed=b"abc"),
        Resume(6, b"t" * 16, 9, b"8" * 8),
        Draft(1, 0, 9, b"8" * 8, b"abc", 1500, [(b"ab", b"cd")]),
    ],
)
def test_device_frames_come_back(frame: frames.FromDevice) -> None:
    assert frames.decode_from_device(frames.encode(frame)) == frame


@pytest.mark.parametrize(
    "frame",
    [
        Welcome(1, "t", "f", 100, [0], 64, 8, False, "window"),
        Welcome(1, "t", "f", 100, [0], 64, 8, False, "window", is_directory=True),
        Redirect(1, "a:1"),
        Redirect(1, ""),
        Verdict(1, 0, 9, 3, 2, 3, 77, 4),
        Verdict(1, 0, 9, 3, 2, 3, 77, 4, 9600, "stop", b"\xff"),
        Verdict(
            1, 0, 9, 0, 0, 1, 77, 4, logprobs=[TokenLogprobs(77, -0.5, b"a", [(3, -1.0, b"")])]
        ),
        Opened(1, b"abc", 4, 9600, b"t" * 16),
        Opened(1, b"", 4, resume=b"t" * 16, committed=b"abc", text=b"\xff"),
        frames.Error(None, "bad_frame", "no"),
        frames.Error(1, "overloaded", "later", 1.5),
    ],
)
def test_server_frames_come_back(frame: frames.FromServer) -> None:
    assert frames.decode_from_server(frames.encode(frame)) == frame


WORDS = st.text(max_size=20)
BUDGETS = st.floats(0, allow_infinity=False)
SESSIONS = st.integers(0, 2**63 - 1)
WISHES = st.builds(Wish, WORDS, BUDGETS, BUDGETS, BUDGETS, st.integers(0, 2**31 - 1))


@given(
    st.builds(Find, SESSIONS, st.binary(max_size=16), WISHES, WORDS, st.lists(WORDS, max_size=4)),
    st.builds(Redirect, SESSIONS, WORDS),
    st.data(),
)
def test_a_find_and_its_answer_come_back_or_are_refused_by_code(
    find: Find, redirect: Redirect, data: st.DataObject
) -> None:
    """Whole, with the fields at the end left out, or with a wound."""
    whole = frames.encode(find)
    assert frames.decode_from_device(whole) == find
    assert frames.decode_from_server(frames.encode(redirect)) == redirect
    [tag, session, beginning, *rest] = msgspec.msgpack.decode(whole)
    short = [tag, session, beginning, *rest[: data.draw(st.integers(0, len(rest)))]]
    found = frames.decode_from_device(msgspec.msgpack.encode(short))
    assert (found.session, found.beginning) == (find.session, find.beginning)  # type: ignore[union-attr]
    at, byte = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 255))
    wounded = whole[:at] + bytes([byte]) + whole[at + 1 :]
    try:
        again = frames.decode_from_device(wounded)
    except PeerError as error:
        assert error.code == "bad_frame"
    else:
        assert frames.encode(frames.decode_from_device(frames.encode(again)))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_frame_or_a_clear_refusal(data: bytes) -> None:
    try:
        frame = frames.decode_from_device(data)
    except PeerError as error:
        assert error.code == "bad_frame"
    else:
        assert frames.decode_from_device(frames.encode(frame)) == frame


@pytest.mark.parametrize(
    "data",
    [
        frames.encode(Verdict(1, 0, 9, 3, 2, 3, 77, 4)),  # a server's frame
        frames.encode(Redirect(1, "a:1")),
        msgspec.msgpack.encode([12, 1, b"", ["chat", "cheap"]]),
        msgspec.msgpack.encode([12, 1, b"", [], "a:1", "b:2"]),
        frames.encode(Hello(1, "x")) + b"\x00",
        b"\x91" * 5000,
        b"x" * (frames.MAX_FRAME_BYTES + 1),
        b"",
    ],
)
def test_wrong_frames_are_refused(data: bytes) -> None:
    with pytest.raises(PeerError):
        frames.decode_from_device(data)


def test_the_vectors_of_the_documentation_hold() -> None:
    vectors = re.findall(r"^    (\w+): ([0-9a-f ]+)$", DOCS.read_text(), re.MULTILINE)
    assert len(vectors) >= 10
    for name, hexes in vectors:
        data = bytes.fromhex(hexes)
        kind = getattr(frames, name)
        from_device = kind in frames.FromDevice.__args__
        decode = frames.decode_from_device if from_device else frames.decode_from_server
        frame = decode(data)
        assert isinstance(frame, kind)
        assert frames.encode(frame) == data


@pytest.mark.parametrize(
    ("counts", "ids", "good"),
    [
        ([65_536], [4], True),
        ([65_000, 536], [4, 9], True),
        ([65_000, 535], [4, 9], False),
        ([65_000, 536], [4, 4], False),
        ([65_536], [4, 9], False),
        ([], [], False),
    ],
)
def test_proposals_are_checked(counts: list[int], ids: list[int], good: bool) -> None:
    data = (np.array(counts, np.int64) - 1).astype("<u2").tobytes()
    assert frames.is_proposal(np.array(ids, np.int32), data) == good


def test_what_nobody_asks_for_costs_no_bytes() -> None:
    assert frames.encode(Verdict(1, 0, 9, 3, 2, 3, 77, 4))[-1:] == b"\x90"
    assert msgspec.msgpack.encode(ChatMessage("user", "hi")) == msgspec.msgpack.encode(
        {"role": "user", "content": "hi"}
    )
