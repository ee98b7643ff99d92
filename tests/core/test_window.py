"""Mode window: the text is the target's own, whatever becomes of the drafts on their way."""

import random

import msgspec
import numpy as np
import pytest

from multispin.core.batch import BatchLimits
from multispin.core.confidence import Calibration
from multispin.core.drafter import Drafted, ModelDrafter
from multispin.core.limits import ServerLimits
from multispin.core.server import Outgoing, ServerCore
from multispin.lm.ngram import NgramModel
from multispin.types import TokenIds
from multispin.wire import frames
from multispin.wire.frames import Draft, Error, Verdict
from tests.core.harness import (
    PROMPT,
    FakeClock,
    Harness,
    Writer,
    new_drafter,
    new_engine,
    new_server,
    next_draft,
    request,
)
from tests.core.test_server import GREEDY, alone

WINDOW = BatchLimits(mode="window")


class Storm(ModelDrafter):
    """Drafts well for a while, then nonsense, then well again."""

    def __init__(self) -> None:
        super().__init__(NgramModel.from_text(num_sequences=1))
        self._num_drafts = 0

    def draft(self, *arguments) -> Drafted:  # type: ignore[no-untyped-def,override]
        drafted = super().draft(*arguments)
        self._num_drafts += 1
        if self._num_drafts % 7 < 3:
            drafted = drafted._replace(ids=(drafted.ids + 1) % 256)
        return drafted


class Sure(ModelDrafter):
    """The target's own twin, and it knows: no early stop."""

    def __init__(self) -> None:
        super().__init__(NgramModel.from_text(num_sequences=1))

    def draft(self, *arguments) -> Drafted:  # type: ignore[no-untyped-def,override]
        drafted = super().draft(*arguments)
        return drafted._replace(confidences=np.ones_like(drafted.confidences))


class Pupil(ModelDrafter):
    """Remembers what it was told to learn."""

    def __init__(self) -> None:
        super().__init__(NgramModel.from_text(order=2, num_sequences=1))
        self.lessons: list[list[int]] = []

    def learn(self, seq: int, committed: TokenIds) -> None:
        self.lessons.append(committed.tolist())


def window_server(max_window: int = 64) -> Harness:
    return new_server(new_engine(), batch=WINDOW, max_draft_length=max_window)


class Link:
    """Frames in flight, either way. Verdicts keep their order, as on any link; what becomes of
    drafts is the random generator's choice."""

    def __init__(self, writer: Writer, rng: random.Random) -> None:
        self.writer = writer
        self.rng = rng
        self.up: list[Draft] = []
        self.down: list[Verdict] = []

    def draft(self) -> None:
        draft = next_draft(self.writer.session, self.rng.randint(1, 8))
        if draft is None:
            return
        self.up.append(draft)
        if self.rng.random() < 0.2:
            self.up.append(draft)
        if self.rng.random() < 0.2 and len(self.ids(draft)) > 2 and not draft.proposals:
            # Once more in two parts, as a device that resends what it is unsure of might.
            self.up.append(
                msgspec.structs.replace(draft, tokens=frames.pack_ids(self.ids(draft)[:1], 12))
            )

    def ids(self, draft: Draft) -> list[int]:
        size = self.writer.harness.core.vocabulary.size
        return frames.unpack_tokens(draft.tokens, 9, size)[0]

    def deliver_up(self) -> None:
        if self.up:
            index = 0 if self.rng.random() < 0.7 else self.rng.randrange(len(self.up))
            for link, frame in self.writer.harness.draft(self.up.pop(index), self.writer.link):
                assert not isinstance(frame, Error), frame
                assert link == self.writer.link
                self.down.append(frame)

    def deliver_down(self) -> None:
        if self.down:
            self.writer.take(self.down.pop(0))


def chaos(harness: Harness, writers: list[Writer], seed: int) -> None:
    """Everything in random order until every text is finished."""
    rng = random.Random(seed)
    links = {writer.link: Link(writer, rng) for writer in writers}
    for _ in range(100_000):
        if all(writer.session.finish for writer in writers):
            return
        link = rng.choice(list(links.values()))
        match rng.randrange(4):
            case 0:
                link.draft()
            case 1:
                link.deliver_up()
            case 2:
                link.deliver_down()
            case 3 if rng.random() < 0.4:
                for name, frame in harness.step() or []:
                    assert not isinstance(frame, Error), frame
                    links[name].down.append(frame)
    raise AssertionError("the texts do not end")


def drafter(kind: str):  # type: ignore[no-untyped-def]
    return Storm() if kind == "storm" else new_drafter(kind)


@pytest.mark.parametrize("window", [1, 2, 8, 64])
@pytest.mark.parametrize("kind", ["none", "lookup", "mixed", "weaker", "same", "storm"])
@pytest.mark.parametrize(
    "params", [GREEDY, {"temperature": 0.8}, {"temperature": 1.0, "top_p": 0.9, "top_k": 12}]
)
def test_the_text_is_the_targets_own(kind: str, window: int, params: dict) -> None:
    for seed in range(3):
        harness = window_server()
        message = request(draft_length=window, max_tokens=60, seed=seed, **params)
        writer = Writer(harness, message, drafter(kind), "link")
        chaos(harness, [writer], seed)
        assert writer.session.committed == alone(message)
        if kind == "same" and window > 1:
            assert writer.session.stats.num_accepted_tokens > 0


def test_a_drafter_learns_from_what_is_committed_only() -> None:
    message = request(draft_length=8, max_tokens=60)
    pupil = Pupil()
    writer = Writer(window_server(), message, pupil, "link")
    chaos(writer.harness, [writer], 0)
    text = [*PROMPT.encode(), *writer.session.committed]
    assert all(lesson == text[: len(lesson)] for lesson in pupil.lessons)
    assert len({len(lesson) for lesson in pupil.lessons}) > 10


@pytest.mark.slow
def test_several_devices_at_once_over_many_orders_of_events() -> None:
    for seed in range(150):
        rng = random.Random(seed)
        harness = window_server()
        writers = []
        for index in range(4):
            message = request(
                index,
                PROMPT * rng.randint(1, 3),
                seed=seed,
                draft_length=rng.choice([1, 2, 3, 5, 16, 64]),
                max_tokens=40,
            )
            kind = rng.choice(["none", "lookup", "mixed", "weaker", "same", "storm"])
            writers.append(Writer(harness, message, drafter(kind), str(index)))
        chaos(harness, writers, seed)
        for writer in writers:
            assert writer.session.committed == alone(writer.session.request)


def test_the_rule_rejection_works_with_a_window() -> None:
    for seed in range(5):
        harness = window_server()
        message = request(rule="rejection", temperature=1.0, draft_length=8, seed=seed)
        writer = Writer(harness, message, new_drafter("same"), "link")
        chaos(harness, [writer], seed)
        assert len(writer.session.committed) == message.max_tokens
        assert writer.session.stats.num_accepted_tokens > 0


class Learning(Harness):
    """A shell that lets the core learn as soon as the pass has begun, as the network's does."""

    def step(self) -> list[Outgoing] | None:
        batch = self.core.next_batch()
        self.core.learn()
        return None if batch is None else self._send(self.core.complete(self.engine.step(batch)))


@pytest.mark.parametrize("kind", ["mixed", "weaker", "storm"])
def test_verdicts_do_not_depend_on_when_a_shell_lets_the_core_learn(kind: str) -> None:
    limits = BatchLimits(mode="window", max_rows=9)  # so that what is learned decides
    sent = []
    for shell in (Harness, Learning):
        harness = shell(
            new_engine(), ServerCore(new_engine().info, ServerLimits(batch=limits), FakeClock())
        )
        writers = [
            Writer(harness, request(i, seed=i, draft_length=8), drafter(kind), str(i))
            for i in range(4)
        ]
        chaos(harness, writers, 3)
        sent.append(harness.sent)
    assert sent[0] == sent[1]


def opened(harness: Harness, window: int = 8) -> Writer:
    """A session past its prompt, with one token committed."""
    writer = Writer(harness, request(draft_length=window, max_tokens=200), Sure(), "x")
    [(_, verdict)] = harness.step() or []
    writer.take(verdict)
    return writer


def test_the_server_goes_on_without_a_draft_and_the_draft_stays_of_use() -> None:
    harness = window_server()
    writer = opened(harness)
    draft = next_draft(writer.session, 6)
    assert draft is not None
    [(_, alone_)] = harness.step() or []  # before the draft has arrived
    assert alone_.num_draft == 0
    harness.draft(draft, "x")
    writer.take(alone_)
    [(_, verdict)] = harness.step() or []
    assert (verdict.num_draft, verdict.num_accepted) == (5, 5)  # the first was overtaken
    writer.take(verdict)
    assert writer.session.committed == alone(writer.session.request)[:8]


@pytest.mark.parametrize("lets_learn", [True, False])
def test_a_verdict_is_learned_from_once_before_the_next_commit_at_the_latest(
    lets_learn: bool,
) -> None:
    harness = window_server()
    writer = opened(harness)
    harness.core.learn()
    calibration = next(iter(harness.core._sessions.values())).calibration
    taught = Calibration()
    taught.acceptance[:] = calibration.acceptance
    draft = next_draft(writer.session, 3)
    assert draft is not None
    harness.draft(draft, "x")
    assert harness.step()
    assert calibration.acceptance.tolist() == taught.acceptance.tolist()
    taught.observe([7, 7, 7], 3)
    if lets_learn:
        harness.core.learn()
        assert calibration.acceptance.tolist() == taught.acceptance.tolist()
        harness.core.learn()
    for _ in range(3):
        assert harness.step()
        assert calibration.acceptance.tolist() == taught.acceptance.tolist()


def test_a_draft_is_verified_while_the_device_drafts_on() -> None:
    harness = window_server()
    writer = opened(harness)
    for _ in range(2):
        draft = next_draft(writer.session, 3)
        assert draft is not None
        harness.draft(draft, "x")
    assert next_draft(writer.session, 99) is not None  # fills the window
    assert next_draft(writer.session) is None  # and no more
    [(_, verdict)] = harness.step() or []
    assert verdict.num_draft == 6
    writer.take(verdict)
    assert next_draft(writer.session) is not None


def test_what_a_verdict_contradicts_is_void_with_all_that_follows() -> None:
    harness = window_server()
    writer = opened(harness)
    good = next_draft(writer.session, 2)
    assert good is not None
    ids = Link(writer, random.Random(0)).ids(good)
    wrong = msgspec.structs.replace(good, tokens=frames.pack_ids([ids[0], ids[1] ^ 1], 12))
    harness.draft(wrong, "x")
    session = next(iter(harness.core._sessions.values()))
    [(_, verdict)] = harness.step() or []
    assert (verdict.num_draft, verdict.num_accepted) == (2, 1)
    later = msgspec.structs.replace(good, start=verdict.start + 2)
    assert harness.draft(later, "x") == []  # of the epoch that ended
    assert session.num_drafted == 0
    assert harness.core.counters.num_stale_drafts == 1


def test_drafts_in_the_wrong_order_wait_for_their_turn() -> None:
    harness = window_server()
    writer = opened(harness)
    drafts = [next_draft(writer.session, 2) for _ in range(3)]
    session = next(iter(harness.core._sessions.values()))
    counts = []
    for index in (2, 1, 0):
        draft = drafts[index]
        assert draft is not None
        assert harness.draft(draft, "x") == []
        counts.append(session.num_drafted)
    assert counts == [0, 0, 6]


def test_the_servers_own_token_may_fill_the_gap_before_an_early_draft() -> None:
    harness = window_server()
    writer = opened(harness)
    lost, early = next_draft(writer.session, 1), next_draft(writer.session, 3)
    assert lost is not None and early is not None
    harness.draft(early, "x")
    session = next(iter(harness.core._sessions.values()))
    assert session.num_drafted == 0
    [(_, verdict)] = harness.step() or []  # what was drafted in the frame that is lost
    assert verdict.num_draft == 0
    assert session.num_drafted == 3


def test_a_draft_that_came_while_the_prompt_was_read_is_weighed_first() -> None:
    harness = window_server()
    writer = Writer(harness, request(draft_length=8), Sure(), "x")
    draft = next_draft(writer.session)
    assert draft is not None
    harness.draft(draft, "x")
    [(_, first)] = harness.step() or []
    [(_, second)] = harness.step() or []
    assert (first.num_draft, second.num_draft) == (0, 7)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"start": 3}, "out_of_order"),  # in the prompt
        ({"tokens": frames.pack_ids([1] * 9, 12)}, "draft_too_long"),
        ({"start": 10_000}, "draft_too_long"),
    ],
)
def test_a_wrong_draft_ends_its_session(change: dict, code: str) -> None:
    harness = window_server()
    writer = opened(harness)
    draft = next_draft(writer.session, 1)
    assert draft is not None
    [(_, error)] = harness.draft(msgspec.structs.replace(draft, **change), "x")
    assert error.code == code


def test_a_draft_of_another_text_is_not_verified() -> None:
    harness = window_server()
    writer = opened(harness)
    draft = next_draft(writer.session, 3)
    assert draft is not None
    assert harness.draft(msgspec.structs.replace(draft, digest=bytes(8)), "x") == []
    [(_, verdict)] = harness.step() or []
    assert verdict.num_draft == 0


def test_a_repeated_draft_gets_the_recorded_verdict() -> None:
    harness = window_server()
    writer = opened(harness)
    draft = next_draft(writer.session, 3)
    assert draft is not None
    harness.draft(draft, "x")
    assert harness.draft(draft, "x") == []  # not judged yet
    [(link, first)] = harness.step() or []
    assert harness.draft(draft, "x") == [(link, first)]
    writer.take(first)
    assert writer.session.apply(first, 0.0) is None


def test_a_token_of_a_path_that_was_dropped_meanwhile_is_not_sent() -> None:
    harness = window_server()
    writer = opened(harness)
    session = writer.session
    job = session.job()
    assert job is not None
    session.add(job, Drafted(np.array([1], np.int32), [], np.ones(1, np.float32)), 0.0)
    stale = session.job()  # begun behind a token that the server is about to contradict
    assert stale is not None
    [(_, verdict)] = harness.step() or []
    writer.take(verdict)
    session.add(stale, Drafted(np.array([2], np.int32), [], np.ones(1, np.float32)), 0.0)
    assert not session.owes_message
