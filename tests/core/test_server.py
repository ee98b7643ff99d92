import random

import msgspec
import numpy as np
import pytest

from multispin.acceptance import Context, choose
from multispin.core.batch import BatchLimits
from multispin.core.confidence import Calibration
from multispin.core.device import DeviceSession
from multispin.errors import PeerError
from multispin.lm.base import Rows
from multispin.lm.ngram import NgramModel
from multispin.types import SamplingParams
from multispin.wire import frames
from multispin.wire.frames import Error, Opened
from tests.core.harness import (
    PROMPT,
    Writer,
    new_drafter,
    new_engine,
    new_server,
    next_draft,
    request,
    run,
    welcome,
    write,
)

GREEDY = {"rule": "greedy", "temperature": 0.0}


def alone(message: frames.Open) -> list[int]:
    """The target by itself, one token at a time, without any of core/."""
    model = NgramModel.from_text(num_sequences=1)
    tokens = model.tokenize(message.prompt).tolist()
    num_prompt = len(tokens)
    for position, token in enumerate(tokens):
        row = np.array([position], np.int32)
        rows = Rows(row * 0, row, np.array([token], np.int32), np.array([True]))
        logits = model.forward(rows)[0]
    while len(tokens) < num_prompt + message.max_tokens:
        context = Context(np.array(tokens, np.int32), num_prompt)
        token = choose(logits, message.params, message.rule, message.seed, context)
        if token in model.vocabulary.end_ids:
            break
        tokens.append(token)
        row = np.array([len(tokens) - 1], np.int32)
        rows = Rows(row * 0, row, np.array([token], np.int32), np.array([True]))
        logits = model.forward(rows)[0]
    return tokens[num_prompt:]


@pytest.mark.parametrize("draft_length", [1, 4, 8, 32])
@pytest.mark.parametrize("kind", ["none", "lookup", "weaker", "same"])
@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        {"temperature": 0.8},
        {"temperature": 1.0, "top_p": 0.9, "top_k": 12},
        {
            "temperature": 0.7,
            "repetition_penalty": 1.3,
            "presence_penalty": 0.5,
            "logit_bias": {32: 1.0},
        },
    ],
)
def test_the_text_is_the_targets_own(kind: str, draft_length: int, params: dict) -> None:
    message = request(draft_length=draft_length, max_tokens=80, **params)
    writer = write(message, kind)
    assert writer.session.committed == alone(message)
    assert writer.text == bytes(t for t in writer.session.committed).decode(errors="replace")


def test_the_text_does_not_depend_on_neighbours_or_arrival() -> None:
    kinds = ["none", "lookup", "weaker", "same", "weaker", "none", "lookup"]
    messages = [
        request(i, PROMPT * (1 + i % 3), seed=i % 3, draft_length=1 + i, max_tokens=60)
        for i in range(len(kinds))
    ]
    for seed in range(5):
        harness = new_server(new_engine(num_sequences=3))  # four sessions have to wait
        writers = [
            Writer(harness, message, new_drafter(kind), f"link {i % 2}")
            for i, (message, kind) in enumerate(zip(messages, kinds, strict=True))
        ]
        run(harness, writers, random.Random(seed))
        for writer, message in zip(writers, messages, strict=True):
            assert writer.session.committed == alone(message)
        assert harness.core.num_sessions == 0


def test_prefill_chunks_do_not_matter_and_keep_others_moving() -> None:
    long_prompt = request(1, PROMPT * 10, max_tokens=20)
    harness = new_server(batch=BatchLimits(mode="stop-and-wait", max_rows=16, prefill_s=0.04))
    harness.core.controller.pass_seconds = lambda num: 0.01 * np.arange(1, num + 1)  # type: ignore[method-assign]
    first = Writer(harness, request(0, max_tokens=100), new_drafter("none"), "a")
    while not first.session.committed:
        for _, frame in harness.step() or []:
            first.take(frame)
    second = Writer(harness, long_prompt, new_drafter("none"), "b")
    before = len(first.session.committed)
    steps = 0
    while not second.session.committed:
        for link, frame in harness.step() or []:
            (first if link == "a" else second).take(frame)
        steps += 1
    # In chunks of 4, less what it shares with the other one, which got a token in every pass.
    assert steps >= len(PROMPT) * 9 // 4
    assert len(first.session.committed) - before == steps
    run(harness, [first, second])
    assert second.session.committed == alone(long_prompt)


def test_rounds_verify_everybody_in_one_pass_and_write_the_same() -> None:
    kinds = ["none", "lookup", "weaker", "same"]
    messages = [request(i, PROMPT * (1 + i), draft_length=1 + 2 * i) for i in range(4)]
    harness = new_server(batch=BatchLimits(max_rows=128, mode="rounds", round_timeout_s=1e9))
    writers = [
        Writer(harness, message, new_drafter(kind), "link")
        for message, kind in zip(messages, kinds, strict=True)
    ]
    rng = random.Random(3)
    by_session = {w.session.request.session: w for w in writers}
    while not all(w.session.finish for w in writers):
        for writer in writers:
            if rng.random() < 0.3:
                writer.act()
        past_prompt = {w.session.request.session for w in writers if w.session.committed}
        frames_sent = [frame for _, frame in harness.step() or []]
        writing = {k for k in past_prompt if not by_session[k].session.finish}
        if frames_sent:
            assert writing <= {frame.session for frame in frames_sent}
        for frame in frames_sent:
            by_session[frame.session].take(frame)
    for writer, message in zip(writers, messages, strict=True):
        assert writer.session.committed == alone(message)


def test_a_round_does_not_wait_for_ever() -> None:
    harness = new_server(batch=BatchLimits(mode="rounds", round_timeout_s=0.05))
    silent = Writer(harness, request(0), new_drafter("weaker"), "a")
    alive = Writer(harness, request(1), new_drafter("weaker"), "b")
    while harness.step() is not None:
        pass
    for _ in range(60):  # the clock goes on by a millisecond a look
        alive.act()
        if harness.core.wait_s() is not None:
            assert 0 <= harness.core.wait_s() <= 0.05
        for _, frame in harness.step() or []:
            alive.take(frame)
    assert alive.session.committed
    assert silent.session.committed == []


def test_the_engine_may_die_at_any_moment() -> None:
    message = request(max_tokens=60)
    harness = new_server()
    writer = Writer(harness, message, new_drafter("weaker"), "link")
    for step in range(1000):
        if writer.session.finish:
            break
        writer.act()
        batch = harness.core.next_batch()
        assert batch is not None
        if step % 8 > 5:  # it lives long enough between two deaths to read all anew
            harness.engine = new_engine()
            assert harness.core.engine_lost() == []
            continue
        for _, frame in harness.core.complete(harness.engine.step(batch)):
            writer.take(frame)
    assert writer.session.committed == alone(message)


def test_a_session_that_always_crashes_the_engine_is_ended_alone() -> None:
    harness = new_server()
    poison = Writer(harness, request(0), new_drafter("none"), "a")
    good = Writer(harness, request(1), new_drafter("weaker"), "b")
    errors = []
    while good.session.finish is None:
        good.act()
        batch = harness.core.next_batch()
        assert batch is not None
        if any(work.seq == 0 for work in batch.works):
            harness.engine = new_engine()
            errors += harness.core.engine_lost()
            continue
        for link, frame in harness.core.complete(harness.engine.step(batch)):
            assert link == "b"
            good.take(frame)
    assert [(link, frame.code) for link, frame in errors] == [("a", "engine_failed")]
    assert poison.session.committed == []
    assert good.session.committed == alone(request(1))


def test_max_tokens_and_stop_sequences_end_the_text() -> None:
    whole = write(request(max_tokens=80, **GREEDY), "none")
    for kind in ("none", "weaker", "same"):
        for max_tokens in (1, 2, 5, 80):
            writer = write(request(max_tokens=max_tokens, draft_length=8, **GREEDY), kind)
            assert writer.session.committed == whole.session.committed[:max_tokens]
            assert writer.session.finish == "length"
        stop = whole.text[10:14]
        writer = write(request(max_tokens=80, stop=(stop,), **GREEDY), kind)
        assert writer.text == whole.text[: whole.text.index(stop)]
        assert writer.session.finish == "stop"


def test_the_end_of_text_token_ends_it_and_is_not_committed() -> None:
    end = min(NgramModel.from_text().vocabulary.end_ids)
    for kind in ("none", "weaker", "same"):
        writer = write(request(logit_bias={end: 6.0}, max_tokens=200, temperature=1.0), kind)
        assert writer.session.finish == "stop"
        assert end not in writer.session.committed
        assert writer.session.committed == alone(
            request(logit_bias={end: 6.0}, max_tokens=200, temperature=1.0)
        )


def test_the_context_ends_the_text() -> None:
    engine = new_engine(context_length=64)
    writer = write(request(max_tokens=500), "weaker", engine=engine)
    assert writer.session.finish == "length"
    assert len(writer.session.committed) == 64 - len(PROMPT)


def test_counters_say_what_happened() -> None:
    writer = write(request(max_tokens=40, draft_length=4), "weaker")
    stats = writer.session.stats
    report = stats.report()
    assert stats.num_committed_tokens == 40
    assert stats.num_verifications == stats.num_drafts + (
        40 - stats.num_accepted_tokens - stats.num_drafts
    )
    assert report["mean_acceptance_length"] == 40 / stats.num_verifications
    by_position = report["acceptance_by_position"]
    assert len(by_position) == 4
    assert all(a >= b for a, b in zip(stats.accepted_at, stats.accepted_at[1:], strict=False))
    assert sum(stats.accepted_at) == stats.num_accepted_tokens
    assert sum(stats.drafted_at) == stats.num_draft_tokens
    assert write(request(), "none").session.stats.report()["mean_acceptance_length"] == 1.0


# --- what a peer may do wrong -----------------------------------------------------------------


def opened_session(harness, **fields):  # type: ignore[no-untyped-def]
    message = request(**fields)
    [(_, opened)] = harness.open(message)
    assert isinstance(opened, Opened)
    return DeviceSession(
        message, opened, new_drafter("weaker"), 0, welcome(harness.core), Calibration()
    )


def settle(harness) -> list:  # type: ignore[no-untyped-def]
    """Run until nothing is ready."""
    out = []
    while (sent := harness.step()) is not None:
        out += sent
    return out


def test_a_repeated_draft_gets_the_recorded_verdict() -> None:
    harness = new_server()
    session = opened_session(harness)
    settle(harness)
    draft = next_draft(session)
    assert harness.draft(draft) == []
    assert harness.draft(draft) == []  # while it is being verified
    [(link, first)] = settle(harness)
    assert harness.draft(draft) == [(link, first)]
    assert settle(harness) == []
    assert session.apply(first, 0.0) is not None
    assert session.apply(first, 0.0) is None
    draft = next_draft(session)
    assert harness.draft(draft) == []
    [(_, second)] = settle(harness)
    assert second.start == first.start + first.num_committed


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"epoch": 1}, "out_of_order"),
        ({"start": 99}, "out_of_order"),
        ({"start": 0}, "out_of_order"),
        ({"digest": b"x" * 8}, "digest_mismatch"),
        ({"tokens": frames.pack_ids([300] * 2, 12)}, "bad_frame"),
        ({"tokens": frames.pack_ids([1] * 9, 12)}, "draft_too_long"),
        ({"session": 5}, "unknown_session"),
    ],
)
def test_a_wrong_draft_ends_its_session_only(change: dict, code: str) -> None:
    harness = new_server()
    session = opened_session(harness)
    bystander = Writer(harness, request(1), new_drafter("weaker"), "other")
    settle(harness)
    draft = next_draft(session)
    [(link, error)] = harness.draft(msgspec.structs.replace(draft, **change))
    assert link == "link"
    assert isinstance(error, Error)
    assert error.code == code
    run(harness, [bystander])
    assert bystander.session.committed == alone(request(1))
    if code != "unknown_session":
        [(_, error)] = harness.draft(draft)
        assert error.code == "unknown_session"


def test_a_stale_draft_is_ignored() -> None:
    harness = new_server()
    session = opened_session(harness)
    settle(harness)
    old = next_draft(session)
    while session.stats.num_accepted_tokens == session.stats.num_draft_tokens:
        draft = old if session.stats.num_drafts == 0 else next_draft(session)
        assert harness.draft(draft) == []
        [(_, verdict)] = settle(harness)
        session.apply(verdict, 0.0)
    draft = next_draft(session)
    harness.draft(draft)
    [(_, verdict)] = settle(harness)
    session.apply(verdict, 0.0)
    assert harness.draft(old) == []
    assert harness.core.counters.num_stale_drafts == 1


@pytest.mark.parametrize(
    ("fields", "code", "named"),
    [
        ({"temperature": -1.0}, "bad_input", "temperature"),
        ({"temperature": float("nan")}, "bad_input", "temperature"),
        ({"top_p": 0.0}, "bad_input", "top_p"),
        ({"max_tokens": 0}, "bad_input", "max_tokens"),
        ({"seed": -1}, "bad_input", "seed"),
        ({"draft_length": 33}, "draft_too_long", "draft_length"),
        ({"draft_length": -1}, "draft_too_long", "draft_length"),
        ({"logit_bias": {100_000: 1.0}}, "bad_input", "logit_bias"),
        ({"prompt": "x" * 512}, "context_overflow", "prompt"),
        ({"prompt": ""}, "bad_input", "prompt"),
        ({"prompt": "x" * 100_000}, "context_overflow", "prompt"),
        ({"rule": "greedy"}, "bad_input", "rule"),
        ({"repetition_penalty": 1e-40}, "bad_input", "repetition_penalty"),
        ({"stop": ("x",) * 17}, "bad_input", "stop"),
        ({"logit_bias": dict.fromkeys(range(2000), 1.0)}, "bad_input", "logit_bias"),
    ],
)
def test_a_wrong_open_is_refused_by_name(fields: dict, code: str, named: str) -> None:
    harness = new_server()
    [(_, error)] = harness.open(request(**fields))
    assert isinstance(error, Error)
    assert error.code == code
    assert named in error.message
    assert harness.core.num_sessions == 0


def test_an_open_session_cannot_be_opened_again_and_closing_frees_it() -> None:
    harness = new_server(new_engine(num_sequences=1), max_waiting=1)
    opened_session(harness)
    [(_, error)] = harness.open(request())
    assert error.code == "out_of_order"
    assert isinstance(harness.open(request(1))[0][1], Opened)
    [(_, error)] = harness.open(request(2))
    assert error.code == "overloaded"
    batch = harness.core.next_batch()
    assert batch is not None
    harness.core.drop("link")  # in the middle of a batch
    assert harness.core.complete(harness.engine.step(batch)) == []
    assert harness.core.num_sessions == 0
    writer = Writer(harness, request(), new_drafter("weaker"), "new")
    run(harness, [writer])
    assert writer.session.committed == alone(request())


def test_a_work_that_cannot_be_judged_ends_its_session_alone() -> None:
    harness = new_server()
    bad = Writer(harness, request(0, seed=99), new_drafter("none"), "a")
    good = Writer(harness, request(1), new_drafter("weaker"), "b")
    errors = []
    while not good.session.finish:
        good.act()
        batch = harness.core.next_batch()
        assert batch is not None
        works = [
            # No check at the door lets this pass; should one be forgotten, nobody else suffers.
            msgspec.structs.replace(work, rule="greedy") if work.seed == 99 else work
            for work in batch.works
        ]
        result = harness.engine.step(msgspec.structs.replace(batch, works=works))
        for link, frame in harness.core.complete(result):
            if link == "a":
                errors.append(frame.code)
            else:
                good.take(frame)
    assert errors == ["engine_failed"]
    assert bad.session.committed == []
    assert good.session.committed == alone(request(1))


def test_the_first_grant_leaves_room_for_the_bonus_token() -> None:
    harness = new_server()
    [(_, opened)] = harness.open(request(max_tokens=8, draft_length=32))
    assert opened.draft_length == 7


def test_a_batch_keeps_to_its_rows_and_serves_the_oldest_first() -> None:
    harness = new_server(batch=BatchLimits(mode="stop-and-wait", max_rows=6, prefill_s=1.0))
    writers = [Writer(harness, request(i), new_drafter("weaker"), str(i)) for i in range(3)]
    settle(harness)
    for index in (2, 0, 1):
        writers[index].act()
    order = []
    while (batch := harness.core.next_batch()) is not None:
        assert batch.num_rows <= 6
        order += [link for link, _ in harness.core.complete(harness.engine.step(batch))]
    assert order == ["2", "0", "1"]


def test_a_verdict_that_commits_too_much_is_refused() -> None:
    harness = new_server()
    session = opened_session(harness, max_tokens=3)
    settle(harness)
    next_draft(session)
    session.apply(frames.Verdict(0, 0, len(PROMPT), 2, 2, 3, 65, 2), 0.0)
    with pytest.raises(PeerError):
        session.apply(frames.Verdict(0, 0, len(PROMPT) + 3, 0, 0, 2, 65, 2), 0.0)


def test_rejection_sends_what_it_drew_from() -> None:
    harness = new_server()
    session = opened_session(harness, rule="rejection", temperature=1.0)
    settle(harness)
    draft = next_draft(session)
    assert len(draft.proposals) == 4
    size, bits = harness.core.vocabulary.size, harness.core.id_bits
    ids, counts = draft.proposals[0]
    drafted = int(frames.unpack_tokens(draft.tokens, bits, size)[0][0])
    without = [t for t in frames.unpack_ids(ids, bits, size) if t != drafted]
    spread = np.full(len(without), 65_536 // len(without) - 1, np.int64)
    spread[0] += 65_536 - int((spread + 1).sum())
    for first in (
        (ids, counts[:-1]),
        (ids, counts[:-2]),
        (ids[:-1], counts),
        (frames.pack_ids(without, bits), spread.astype("<u2").tobytes()),
        (b"", b""),
    ):
        broken = msgspec.structs.replace(draft, proposals=[first, *draft.proposals[1:]])
        other = new_server()
        opened_session(other, rule="rejection", temperature=1.0)
        settle(other)
        [(_, error)] = other.draft(broken)
        assert error.code == "bad_frame"
    [(_, error)] = harness.draft(msgspec.structs.replace(draft, proposals=draft.proposals[:1]))
    assert error.code == "bad_frame"
    for kind in ("weaker", "same", "lookup", "none"):
        writer = write(request(rule="rejection", temperature=1.0, max_tokens=120), kind)
        assert len(writer.session.committed) == 120
        if kind == "same":  # p = q up to the quantisation of q
            assert writer.session.stats.num_accepted_tokens > 60


def test_sampling_parameters_have_one_default() -> None:
    assert SamplingParams() == request(temperature=0.0).params
