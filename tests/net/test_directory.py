"""Which replica a directory names: the rule, over what is listed and what replicas say."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from msgspec.structs import replace

from multispin.cell.replica_list import ListedReplica, ListedTarget, ReplicaList
from multispin.core.tenant import LOCAL, Tenant
from multispin.errors import MultispinError
from multispin.net.directory import Directory
from multispin.wire.frames import Find, Wish
from tests.net.fake_replica import WELCOME, status

OTHER = replace(WELCOME, target="other", fingerprint="stamp")


def listing(**targets: int) -> ReplicaList:
    """So many replicas of each target, NAME-0, NAME-1, …, at NAME-0:1 and so on."""
    names = [(target, f"{target}-{at}") for target, num in targets.items() for at in range(num)]
    return ReplicaList(
        [ListedTarget(name, quality=at) for at, name in enumerate(targets)],
        [ListedReplica(name, target, f"{name}:1") for target, name in names],
    )


def directory(listed: ReplicaList, **fields: Any) -> Directory:
    """In which all replicas serve; those of the target ``other`` another model."""
    made = Directory()
    made.use(listed)
    for replica in listed.replicas:
        welcome = OTHER if replica.target == "other" else WELCOME
        told = {"max_sessions": 100, "welcome": welcome, **fields}
        made.news(replica.name, status(replica.name, **told))
    return made


def asked(number: int, **fields: Any) -> Find:
    return Find(0, number.to_bytes(8, "little"), **fields)


def found(made: Directory, find: Find, tenant: Tenant = LOCAL, **own: Any) -> str:
    return made.find(tenant, find, **own).server


def refused(made: Directory, find: Find, **own: Any) -> str:
    with pytest.raises(MultispinError) as error:
        made.find(LOCAL, find, **own)
    assert len(str(error.value).splitlines()) == 1
    return error.value.code


def test_two_directories_agree_and_a_third_that_has_begun_anew() -> None:
    listed = listing(chat=7)
    first, second = directory(listed), directory(listed)
    placed = [found(first, asked(n)) for n in range(60)]
    assert placed == [found(second, asked(n)) for n in range(60)]
    upside_down = ReplicaList(listed.targets, listed.replicas[::-1])
    assert placed == [found(directory(upside_down), asked(n)) for n in range(60)]
    assert len(set(placed)) == 7


def test_equal_beginnings_of_one_tenant_land_together() -> None:
    made = directory(listing(chat=7))
    other = Tenant("someone else", LOCAL.scopes)
    mine = [found(made, asked(5)) for _ in range(8)]
    assert len(set(mine)) == 1
    theirs = {found(made, asked(n), other) != found(made, asked(n)) for n in range(20)}
    assert theirs == {True, False}


def test_one_popular_beginning_does_not_pile_up() -> None:
    made = directory(listing(chat=4))
    placed = Counter(found(made, asked(5)) for _ in range(200))
    assert max(placed.values()) <= 1.25 * 200 / 4 + 9


def test_what_was_placed_counts_until_the_next_status() -> None:
    made = directory(listing(chat=2), max_sessions=3)
    assert Counter(found(made, asked(n)) for n in range(6)) == {"chat-0:1": 3, "chat-1:1": 3}
    # They may have ended: no replica has said that it is full. But not without end.
    assert Counter(found(made, asked(n)) for n in range(6, 10)) == {"chat-0:1": 2, "chat-1:1": 2}
    assert refused(made, asked(10)) == "overloaded"
    for name, num_sessions in (("chat-0", 3), ("chat-1", 2)):
        made.news(name, status(name, max_sessions=3, num_sessions=num_sessions))
    assert {found(made, asked(n)) for n in range(3)} == {"chat-1:1"}
    made.news("chat-1", status("chat-1", max_sessions=3, num_sessions=3))
    assert refused(made, asked(7)) == "overloaded"


@pytest.mark.parametrize("condition", ["loading", "engine_lost", "draining", None])
def test_only_replicas_that_serve_get_sessions(condition: Any) -> None:
    made = directory(listing(chat=3))
    gone = status("chat-1", condition=condition, max_sessions=100) if condition else None
    made.news("chat-1", gone)
    placed = {found(made, asked(n)) for n in range(50)}
    assert placed == {"chat-0:1", "chat-2:1"}
    for n in range(10):
        assert found(made, asked(n, last="chat-1:1")) != "chat-1:1"
    shown = {listed.name: found for listed, found, _ in made.replicas}
    assert shown == {"chat-0": "ok", "chat-1": condition or "down", "chat-2": "ok"}


def test_those_whose_replica_stays_keep_it_when_one_goes_and_comes_back() -> None:
    made = directory(listing(chat=5), max_sessions=1000)
    before = [found(made, asked(n)) for n in range(100)]
    made.news("chat-2", None)
    without = [found(made, asked(n)) for n in range(100)]
    assert all(new == old for new, old in zip(without, before, strict=True) if old != "chat-2:1")
    assert "chat-2:1" not in without
    made.news("chat-2", status("chat-2", max_sessions=1000))
    assert [found(made, asked(n)) for n in range(100)] == before


def test_the_last_replica_wins_unless_it_is_avoided() -> None:
    made = directory(listing(chat=5))
    home = found(made, asked(1))
    last = next(f"chat-{n}:1" for n in range(5) if f"chat-{n}:1" != home)
    assert found(made, asked(1, last=last)) == last
    assert found(made, asked(1, last=last, avoid=[last])) == home
    assert found(made, asked(1, avoid=[home])) != home
    assert found(made, asked(1, last="elsewhere:1", avoid=["nowhere:1"])) == home
    all_of_them = [f"chat-{n}:1" for n in range(5)]
    assert refused(made, asked(1, avoid=all_of_them)) == "overloaded"
    for n in range(5):  # a session that is there already needs no room
        made.news(f"chat-{n}", status(num_sessions=100, max_sessions=100))
    assert found(made, asked(1, last=last)) == last
    assert refused(made, asked(1)) == "overloaded"


def test_a_session_that_moves_keeps_its_target() -> None:
    made = directory(listing(chat=2, other=2))
    made.news("other-0", None)
    assert found(made, asked(1, last="other-0:1")) == "other-1:1"
    impossible = Wish(max_s_per_token=1e-9)
    assert found(made, asked(1, last="other-0:1", wish=impossible)) == "other-1:1"
    made.news("other-1", None)
    assert refused(made, asked(1, last="other-0:1")) == "loading"


def test_a_wish_names_a_target_as_listed_or_its_model() -> None:
    made = directory(listing(chat=2, other=2, draft=1))
    assert found(made, asked(1)).startswith("chat-")
    assert found(made, asked(1, wish=Wish("draft"))) == "draft-0:1"
    assert found(made, asked(1, wish=Wish("other"))).startswith("other-")
    assert found(made, asked(1, wish=Wish("model"))).startswith("chat-")
    assert refused(made, asked(1, wish=Wish("nobody"))) == "unknown_target"


def test_budgets_choose_and_are_refused_with_what_there_is() -> None:
    made = directory(listing(chat=1, large=1))
    made.news("large-0", status(pass_fixed_s=0.2))
    assert found(made, asked(1)) == "chat-0:1"  # the first
    assert found(made, asked(1, wish=Wish(min_quality=1))) == "large-0:1"
    assert found(made, asked(1, wish=Wish(max_s_per_token=0.3))) == "large-0:1"
    assert found(made, asked(1, wish=Wish(max_s_per_token=0.1))) == "chat-0:1"
    with pytest.raises(MultispinError, match=r"max_s_per_token = 0\.001.*0\.01 s per token"):
        made.find(LOCAL, asked(1, wish=Wish(max_s_per_token=0.001)))
    assert refused(made, asked(1, wish=Wish("large", max_s_per_token=0.1))) == "infeasible"


def test_only_targets_of_the_drafters_vocabulary() -> None:
    made = directory(listing(chat=1, other=1))
    own: dict[str, Any] = {"drafter": "small", "fingerprint": "stamp"}
    assert found(made, asked(1), **own) == "other-0:1"
    assert refused(made, asked(1, wish=Wish("chat")), **own) == "vocabulary_mismatch"
    assert made.welcome(LOCAL, "small", "stamp").target == "other"
    with pytest.raises(MultispinError) as error:
        made.welcome(LOCAL, "small", "neither")
    assert error.value.code == "vocabulary_mismatch"


def test_the_welcome_is_remembered_and_says_directory() -> None:
    made = Directory()
    made.use(listing(chat=2))
    with pytest.raises(MultispinError) as error:
        made.welcome(LOCAL, "none", None)
    assert (error.value.code, error.value.retry_after_s) == ("loading", 1.0)
    assert refused(made, asked(1)) == "loading"
    made.news("chat-1", status("chat-1"))
    told = made.welcome(LOCAL, "none", None)
    assert told == replace(WELCOME, is_directory=True)
    made.news("chat-1", None)
    assert made.welcome(LOCAL, "none", None) == told
    assert refused(made, asked(1)) == "loading"


def test_a_replica_with_another_model_than_its_target_gets_nothing() -> None:
    made = directory(listing(chat=3))
    made.news("chat-1", status("chat-1", welcome=OTHER))
    assert "chat-1:1" not in {found(made, asked(n)) for n in range(50)}
    assert "other_model" in {condition for _, condition, _ in made.replicas}


def test_one_with_another_model_is_left_out_wherever_it_stands() -> None:
    made = directory(listing(chat=3))
    made.news("chat-0", status("chat-0", welcome=OTHER))
    assert {found(made, asked(n)) for n in range(12)} == {"chat-1:1", "chat-2:1"}
    assert made.welcome(LOCAL, "none", None).target == WELCOME.target
    made.news("chat-2", status("chat-2", welcome=OTHER))  # most of them, now
    assert {found(made, asked(n)) for n in range(12)} == {"chat-0:1", "chat-2:1"}


def test_the_model_of_those_that_are_gone_is_no_hindrance() -> None:
    made = directory(listing(chat=3))
    for n in range(3):
        made.news(f"chat-{n}", None)
    made.news("chat-2", status("chat-2", welcome=OTHER))
    assert found(made, asked(1)) == "chat-2:1"
    assert made.welcome(LOCAL, "none", None).target == OTHER.target


def test_a_text_that_moves_may_go_to_any_target_of_its_model_but_first_to_its_own() -> None:
    made = directory(listing(chat=1, large=2, other=1))
    moves = asked(1, last="large-0:1", avoid=["large-0:1"])
    assert found(made, moves) == "large-1:1"
    made.news("large-1", None)
    assert found(made, moves) == "chat-0:1"
    full = status("chat-0", welcome=WELCOME, max_sessions=1, num_sessions=1)
    made.news("chat-0", full)
    assert refused(made, moves) == "overloaded"
    assert found(made, asked(1, last="chat-0:1", avoid=["chat-0:1"])) == "large-0:1"
    assert found(made, asked(1, wish=Wish(WELCOME.target))) == "large-0:1"
    assert refused(made, asked(1)) == "overloaded"  # who asks for nothing gets the first


def test_a_new_list_keeps_what_is_known_of_those_that_stay() -> None:
    made = directory(listing(chat=4), num_sessions=9)
    before = [found(made, asked(n)) for n in range(40)]
    made.use(listing(other=1, chat=4))
    made.news("other-0", status("other-0", welcome=OTHER))
    chat = Wish("chat")
    assert [found(made, asked(n, wish=chat)) for n in range(40)] == before
    made.use(listing(chat=3))
    after = [found(made, asked(n)) for n in range(40)]
    assert all(new == old for new, old in zip(after, before, strict=True) if old != "chat-3:1")
    elsewhere = [ListedReplica("chat-0", "chat", "new:1")]
    made.use(ReplicaList([ListedTarget("chat")], elsewhere))  # of which nothing is known yet
    assert refused(made, asked(1)) == "loading"


def test_whatever_is_asked_the_answer_is_a_replica_that_serves_or_an_error() -> None:
    rng = random.Random(4)
    made = directory(listing(chat=5, other=3), max_sessions=4)
    names = [listed.name for listed, _, _ in made.replicas]
    for _ in range(3000):
        if rng.random() < 0.3:
            name = rng.choice(names)
            condition = rng.choice(["ok", "ok", "draining", "loading"])
            welcome = OTHER if name.startswith("other") else WELCOME
            told = status(name, condition=condition, welcome=welcome, max_sessions=4)
            made.news(name, rng.choice([None, told, replace(told, num_sessions=rng.randrange(6))]))
        find = asked(
            rng.randrange(20),
            wish=Wish(rng.choice(["", "", "chat", "model", "?"]), rng.choice([0.0, 1.0, 1e-9])),
            last=rng.choice(["", "x:1", *(f"{name}:1" for name in names)]),
            avoid=rng.sample([f"{name}:1" for name in names], rng.randrange(4)),
        )
        serving = {listed.server for listed, found, _ in made.replicas if found == "ok"}
        try:
            answer = found(made, find, fingerprint=rng.choice([None, "print", "neither"]))
        except MultispinError as error:
            assert error.code != "internal"
        else:
            assert answer in serving - set(find.avoid)
