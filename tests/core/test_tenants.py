"""What one tenant may have, and what it may not learn of another."""

from __future__ import annotations

import gc
import random
import weakref

import pytest

from multispin.core.detached import RESUME_S
from multispin.core.engine import Batch
from multispin.core.gate import LEAST_RETRY_S
from multispin.core.server import Outgoing
from multispin.core.tenant import Scope, Tenant, TenantLimits
from multispin.core.welcome import welcome
from multispin.wire.frames import Close, Error, Opened, PrefixDigest, Resume
from tests.core.harness import (
    PROMPT,
    Writer,
    new_drafter,
    new_engine,
    new_server,
    request,
    run,
)
from tests.core.test_caches import LONG, counting_server
from tests.core.test_server import alone
from tests.core.test_window import WINDOW

SCOPES: frozenset[Scope] = frozenset({"generate"})


def tenant(name: str = "ours", **limits: float) -> Tenant:
    return Tenant(name, SCOPES, TenantLimits(**limits))  # type: ignore[arg-type]


def code(outgoing: list[Outgoing]) -> str | None:
    """Of the error that came; None if a session was opened."""
    [(_, frame)] = outgoing
    return frame.code if isinstance(frame, Error) else None


# --- limits ------------------------------------------------------------------------------------


def test_sessions_are_counted_over_all_links_of_a_tenant() -> None:
    harness = new_server()
    for link in ("a", "b"):
        harness.connect(link, tenant(max_sessions=2))
    harness.connect("c", tenant("others", max_sessions=2))
    assert code(harness.open(request(0), "a")) is None
    assert code(harness.open(request(0), "b")) is None
    [(_, error)] = harness.open(request(1), "a")
    assert error.code == "rate_limited"
    assert "allows 2" in error.message
    assert error.retry_after_s >= LEAST_RETRY_S
    assert code(harness.open(request(0), "c")) is None
    harness.core.close("b", Close(0))
    assert code(harness.open(request(1), "a")) is None


def test_a_session_that_is_taken_from_a_half_dead_link_counts_once() -> None:
    harness = new_server(batch=WINDOW)
    harness.connect("a", tenant(max_sessions=1))
    [(_, opened)] = harness.open(request(), "a")
    harness.core.next_batch()
    harness.connect("b", tenant(max_sessions=1))
    prompt = PROMPT.encode()
    message = Resume(0, opened.resume, len(prompt), PrefixDigest(prompt).digest())
    assert code(harness.resume(message, "b")) is None
    assert code(harness.open(request(1), "b")) == "rate_limited"


def test_resuming_does_not_get_around_the_number_of_sessions() -> None:
    harness = new_server(batch=WINDOW)
    harness.connect("a", tenant(max_sessions=1))
    [(_, opened)] = harness.open(request(), "a")
    harness.drop("a")
    harness.connect("b", tenant(max_sessions=1))
    assert code(harness.open(request(), "b")) is None
    prompt = PROMPT.encode()
    message = Resume(1, opened.resume, len(prompt), PrefixDigest(prompt).digest())
    assert code(harness.resume(message, "b")) == "rate_limited"
    harness.core.close("b", Close(0))
    assert code(harness.resume(message, "b")) is None  # it was not forgotten


def test_prompts_and_drafts_are_as_long_as_the_tenant_may() -> None:
    harness = new_server()
    ours = tenant(max_prompt_tokens=len(PROMPT), max_draft_length=3)
    assert welcome(harness.core, ours).max_draft_length == 3
    assert welcome(harness.core, tenant(max_draft_length=99)).max_draft_length == 32
    harness.connect("a", ours)
    assert code(harness.open(request(0, draft_length=3), "a")) is None
    [(_, error)] = harness.open(request(1, PROMPT + "x", draft_length=3), "a")
    assert error.code == "bad_input"
    assert str(len(PROMPT)) in error.message
    assert code(harness.open(request(1, draft_length=4), "a")) == "draft_too_long"


@pytest.mark.parametrize("rate", [0.2, 1.0, 4.0])
def test_sessions_are_opened_as_fast_as_the_tenant_may(rate: float) -> None:
    """So many at once, and in the long run so many per second, however they are asked for."""
    harness = new_server(max_waiting=1000)
    harness.connect("a", tenant(requests_per_s=rate))
    clock, rng, num_open, now = harness.core._clock, random.Random(3), 0, 0.0
    burst = max(int(rate), 1)
    for number in range(300):
        clock.now = now
        answer = harness.open(request(number, max_tokens=1), "a")
        if code(answer) is None:
            num_open += 1
            harness.core.close("a", Close(number))
        else:
            assert code(answer) == "rate_limited"
            assert number >= burst
            [(_, error)] = answer
            clock.now = now + error.retry_after_s + 1e-6
            harness.core.check_open("a", request(number))  # then it would be opened
        now += rng.choice([0.0, 0.1, 0.5]) / rate
        assert num_open <= burst + rate * (now + 0.01)
    assert num_open > 0.8 * rate * now


def test_what_is_refused_does_not_count() -> None:
    harness = new_server()
    harness.connect("a", tenant(requests_per_s=1.0))
    for _ in range(5):
        assert code(harness.open(request(max_tokens=0), "a")) == "bad_input"
    assert code(harness.open(request(), "a")) is None
    assert code(harness.open(request(1), "a")) == "rate_limited"


def test_when_to_come_back_is_when_a_sequence_will_be_free() -> None:
    harness = new_server(new_engine(num_sequences=2), max_waiting=0)
    clock = harness.core._clock
    for number in range(60):  # sessions last for 30 s
        assert code(harness.open(request(number))) is None
        clock.now += 30
        harness.core.close("link", Close(number))
    for number in range(2):
        harness.open(request(number))
    [(_, error)] = harness.open(request(2))
    assert error.code == "overloaded"
    assert error.retry_after_s == pytest.approx(15, rel=0.02)


def test_a_server_that_is_being_stopped_begins_nothing_and_ends_what_runs() -> None:
    harness = new_server()
    writer = Writer(harness, request(), new_drafter("weaker"), "a")
    [(_, other)] = harness.open(request(), "b")
    harness.drop("b")
    harness.connect("b")
    assert not harness.core.draining
    harness.core.refuse_new(2.5)
    assert harness.core.draining
    prompt = PROMPT.encode()
    for answer in (
        harness.open(request(1), "a"),
        harness.resume(Resume(0, other.resume, len(prompt), PrefixDigest(prompt).digest()), "b"),
    ):
        [(_, error)] = answer
        assert (error.code, error.retry_after_s) == ("draining", 2.5)
    run(harness, [writer])
    assert writer.session.committed == alone(request())


def test_a_link_that_has_ended_meanwhile_begins_nothing() -> None:
    """Its prompt was being read when it ended."""
    harness = new_server()
    prompt = harness.engine.tokenize(PROMPT, parse_special=False)
    assert code(harness.core.open("gone", request(), prompt)) == "unreachable"
    assert code(harness.core.resume("gone", Resume(0, bytes(16), 1, b""))) == "unreachable"
    assert harness.core.num_sessions == 0


# --- isolation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("still_runs", [False, True])
def test_what_one_tenant_has_asked_is_not_read_faster_for_another(
    share: bool, still_runs: bool
) -> None:
    harness, model = counting_server(4, share_prefixes=share)
    for name in ("alice", "bob"):
        harness.connect(name, tenant(name))
    first = Writer(harness, request(0, LONG, max_tokens=4 + 90 * still_runs), None, "alice")
    if still_runs:
        for _, frame in harness.step() or []:
            first.take(frame)
        while not first.session.committed:
            for _, frame in harness.step() or []:
                first.take(frame)
    else:
        run(harness, [first])
    for name, is_known in (("bob", share), ("alice", True)):
        before, num_taken = model.num_rows, len(first.session.committed)
        writer = Writer(harness, request(1, LONG, max_tokens=4, seed=5), None, name)
        by_key = {("alice", 0): first, (name, 1): writer}
        while not writer.session.finish:
            for link, frame in harness.step() or []:
                by_key[link, frame.session].take(frame)
        num_rows = model.num_rows - before - (len(first.session.committed) - num_taken)
        assert (num_rows < len(LONG)) == is_known
        assert writer.session.committed == alone(request(1, LONG, max_tokens=4, seed=5))


# --- leaks -------------------------------------------------------------------------------------


class AnyLink(str):
    """Can be seen to be gone."""


class Mob:
    """Everything that devices may do, and the engine, at random."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.harness = new_server(new_engine(2), batch=WINDOW, max_waiting=8)
        self.links: list[AnyLink] = []
        self.seen: list[weakref.ref[AnyLink]] = []
        self.opened: list[tuple[bytes, bytes]] = []  # tokens and prompts
        self.batch: Batch | None = None
        self.num_acts = 0
        self.acts = [self.open, self.open, self.close, self.resume, self.go_on, self.go_on]
        self.acts += [self.crash, self.drop, self.wait]
        for _ in range(3):
            self.connect()

    def act(self) -> None:
        self.num_acts += 1
        self.rng.choice(self.acts)()

    def connect(self) -> None:
        self.links.append(AnyLink(len(self.seen)))
        self.seen.append(weakref.ref(self.links[-1]))
        self.harness.connect(self.links[-1], tenant(max_sessions=4, requests_per_s=900.0))

    def open(self) -> None:
        rng, prompt = self.rng, PROMPT * self.rng.randint(1, 2)
        message = request(rng.randrange(self.num_acts), prompt, max_tokens=rng.randint(0, 30))
        [(_, opened)] = self.harness.open(message, rng.choice(self.links))
        if isinstance(opened, Opened):
            self.opened.append((opened.resume, prompt.encode()))

    def close(self) -> None:
        self.harness.core.close(self.rng.choice(self.links), Close(self.rng.randrange(20)))

    def resume(self) -> None:
        if self.opened:
            token, prompt = self.rng.choice(self.opened)
            message = Resume(self.num_acts, token, len(prompt), PrefixDigest(prompt).digest())
            self.harness.resume(message, self.rng.choice(self.links))

    def go_on(self) -> None:
        if self.batch is None:
            self.batch = self.harness.core.next_batch()
        else:
            self.end_pass()

    def end_pass(self) -> None:
        if self.batch is not None:
            self.harness.complete(self.harness.engine.step(self.batch))
            self.batch = None

    def crash(self) -> None:
        if self.batch is not None:
            self.harness.engine, self.batch = new_engine(2), None
            self.harness.core.engine_lost()

    def drop(self) -> None:
        link = self.links.pop(self.rng.randrange(3))
        self.harness.drop(link)
        self.connect()

    def wait(self) -> None:
        self.harness.core._clock.now += self.rng.choice([0.1, 1.0, 20.0])

    def leave(self) -> None:
        for link in self.links:
            self.harness.drop(link)
        self.links = []


@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_left_of_links_and_sessions_whatever_happened(seed: int) -> None:
    mob = Mob(seed)
    for _ in range(200):
        mob.act()
    mob.leave()
    mob.end_pass()
    mob.harness.sent.clear()
    core = mob.harness.core
    core.learn()
    assert core.next_batch() is None
    core._clock.now += RESUME_S
    assert core.num_sessions == core.num_detached == 0
    gc.collect()
    assert [link() for link in mob.seen if link() is not None] == []
    caches, controller = core._placement._caches, core.controller
    assert not core._placement.sessions
    assert set(caches._heads) == set(caches._kept)
    assert sorted([*caches._empty, *caches._kept]) == [0, 1]
    assert not any((controller._links, controller._sessions))
    [cell] = controller._cells.values()
    assert not any((cell._links, cell._devices, cell._left))
