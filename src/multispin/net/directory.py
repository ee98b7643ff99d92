"""Which replica serves a session: what is listed, what the replicas say, and the rule.

Nothing is kept of a session, so that any number of directories may answer side by side; from the
same list and the same statuses all decide alike. No I/O here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from msgspec.structs import replace

from multispin.cell.replica_list import ListedReplica, ListedTarget, ReplicaList
from multispin.control.choice import Budgets, Offer, TargetProfile, UnknownTarget, choose, offer_of
from multispin.control.estimate import VerificationFit
from multispin.control.replicas import NOWHERE, has_room, place, replica_seeds, session_key
from multispin.core.tenant import Tenant
from multispin.errors import IncompatibleModels, MultispinError, PeerError
from multispin.wire.frames import Find, Redirect, Welcome, Wish
from multispin.wire.replica import Condition, Status

RETRY_S = 1.0
MOST_PLACED = 1.5  # times its places that a replica may have, as far as it has not told of them
# "down": no connection to it. "other_model": not the model of the target's other replicas.
ReplicaCondition: TypeAlias = Condition | Literal["down", "other_model"]


class ReplicaState(NamedTuple):
    listed: ListedReplica
    condition: ReplicaCondition
    status: Status | None


class TargetState(NamedTuple):
    listed: ListedTarget
    welcome: Welcome | None  # as told last; None: no replica has ever said
    serves: bool  # whether any replica does


class _Place(NamedTuple):
    group: _Group
    at: int


class Directory:
    """Of one list, until the next one."""

    def __init__(self) -> None:
        self._groups: list[_Group] = []
        self._by_name: dict[str, _Place] = {}
        self._by_server: dict[str, _Place] = {}

    def use(self, listed: ReplicaList) -> None:
        """A new list; what is known of replicas that stay on it stays."""
        before = dict(self._by_name)
        self._groups = [
            _Group(target, [r for r in listed.replicas if r.target == target.name])
            for target in listed.targets
        ]
        places = [_Place(group, at) for group in self._groups for at in range(len(group.replicas))]
        self._by_name = {place.group.replicas[place.at].name: place for place in places}
        self._by_server = {place.group.replicas[place.at].server: place for place in places}
        for name, (group, at) in self._by_name.items():
            if (old := before.get(name)) and old.group.replicas[old.at] == group.replicas[at]:
                group.keep(at, old.group, old.at)
        for group in self._groups:
            group.agree()

    def news(self, name: str, status: Status | None) -> None:
        """A listed replica's status has come, or it is gone."""
        group, at = self._by_name[name]
        group.take(at, status)

    # --- answers -------------------------------------------------------------------------------

    def welcome(self, tenant: Tenant, drafter: str, fingerprint: str | None) -> Welcome:
        """That of the first target which suits the drafter, as it was told last.

        Raise PeerError (code loading) while none is known, IncompatibleModels if none suits.
        """
        for group in self._suiting(self._groups, drafter, fingerprint):
            if (welcome := group.welcome) is not None:
                most = tenant.limits.draft_length(welcome.max_draft_length)
                return replace(welcome, is_directory=True, max_draft_length=most, pads=False)
        raise _none_serves(self._groups)

    def find(
        self, tenant: Tenant, message: Find, drafter: str = "none", fingerprint: str | None = None
    ) -> Redirect:
        """The replica for a session, which counts there from now on.

        Raise UnknownTarget, IncompatibleModels, InfeasibleBudgets, or PeerError: code loading while
        no replica serves, overloaded while none has room.
        """
        avoid = {self._by_server[s] for s in message.avoid if s in self._by_server}
        last = self._by_server.get(message.last)
        groups = self._suiting(self._asked(message.wish, last), drafter, fingerprint)
        if (
            last in avoid
            or last is None
            or last.group not in groups
            or not last.group.serves(last.at)
        ):
            budgets = Budgets() if last else _budgets(message.wish)
            if not (last or message.wish.target or budgets.stated):
                groups = groups[:1]  # whether it has room or not
            key = session_key(tenant.name, message.beginning)
            last = _best(groups, key, avoid, budgets)
        last.group.num_sessions[last.at] += 1
        return Redirect(message.session, last.group.replicas[last.at].server)

    def _asked(self, wish: Wish, last: _Place | None) -> list[_Group]:
        """The targets of which one may be had: a session that moves keeps its own, or goes to
        one of the same model."""
        if last is not None:
            like = [group for group in self._groups if group.is_like(last.group)]
            return sorted(like, key=lambda group: group is not last.group)
        if not wish.target:
            return self._groups
        named = [g for g in self._groups if g.target.name == wish.target]
        named = named or [g for g in self._groups if g.welcome and g.welcome.target == wish.target]
        if not named:
            known = ", ".join(self.target_names)
            raise UnknownTarget("target", wish.target, f"choose one of those served: {known}")
        return named

    def _suiting(
        self, groups: Sequence[_Group], drafter: str, fingerprint: str | None
    ) -> list[_Group]:
        """Those whose vocabulary is the drafter's, or not known yet."""
        suiting = [group for group in groups if group.suits(fingerprint)]
        if groups and not suiting:
            names = ", ".join(group.target.name for group in groups)
            raise IncompatibleModels(
                "drafter",
                drafter,
                f"its vocabulary differs from that of every target ({names}): draft with a model "
                "of a target's family, or with lookup",
            )
        return suiting

    # --- what is known ---------------------------------------------------------------------------

    @property
    def target_names(self) -> list[str]:
        return [group.target.name for group in self._groups]

    @property
    def targets(self) -> Iterator[TargetState]:
        for group in self._groups:
            serves = bool(group.max_sessions.any())
            yield TargetState(group.target, group.welcome, serves)

    @property
    def replicas(self) -> Iterator[ReplicaState]:
        """In the list's order of targets."""
        for group in self._groups:
            for at, listed in enumerate(group.replicas):
                yield ReplicaState(listed, group.condition(at), group.statuses[at])

    @property
    def serves(self) -> bool:
        """Whether any replica does."""
        return any(target.serves for target in self.targets)


class _Group:
    """The replicas of one target, as arrays [R]."""

    def __init__(self, target: ListedTarget, replicas: Sequence[ListedReplica]) -> None:
        self.target = target
        self.replicas = replicas
        self.statuses: list[Status | None] = [None] * len(replicas)
        self.welcomes: list[Welcome | None] = [None] * len(replicas)  # last told, whatever became
        self.welcome: Welcome | None = None  # what the target's replicas tell devices
        self.num_told = np.zeros(len(replicas), np.int64)  # sessions, by the last status
        self.num_sessions = np.zeros(len(replicas), np.int64)  # with those placed since then
        self.max_sessions = np.zeros(len(replicas), np.int64)  # 0: it takes none
        self._profile = TargetProfile(
            target.name, target.quality, target.watts, target.cost_per_hour
        )
        self._seeds = replica_seeds(replica.name for replica in replicas)

    def take(self, at: int, status: Status | None) -> None:
        before = self._model(at)
        self.statuses[at] = status
        if status is not None and status.welcome is not None:
            self.welcomes[at] = status.welcome
        self.num_told[at] = self.num_sessions[at] = status.num_sessions if status else 0
        if self._model(at) != before:
            self.agree()
        self._open(at)

    def keep(self, at: int, old: _Group, old_at: int) -> None:
        """What is known of it; then all are to `agree`."""
        self.statuses[at], self.welcomes[at] = old.statuses[old_at], old.welcomes[old_at]
        self.num_told[at] = old.num_told[old_at]
        self.num_sessions[at] = old.num_sessions[old_at]

    def agree(self) -> None:
        """On the target's model: that of most replicas that are there, so that one with a wrong one
        is left out, and not all others."""
        known = [welcome for welcome in self.welcomes if welcome is not None]
        here = Counter(model for at in range(len(self.replicas)) if (model := self._model(at)))
        if here:
            model = here.most_common(1)[0][0]  # of as many, the first in the list
            known = [welcome for welcome in known if _model_of(welcome) == model]
        self.welcome = known[0] if known else None
        for at in range(len(self.replicas)):
            self._open(at)

    def _model(self, at: int) -> tuple[str, str] | None:
        """Of a replica that is there."""
        welcome = self.welcomes[at] if self.statuses[at] else None
        return _model_of(welcome) if welcome else None

    def _open(self, at: int) -> None:
        """For sessions, if it serves."""
        status, is_open = self.statuses[at], self.condition(at) == "ok"
        self.max_sessions[at] = status.max_sessions if status and is_open else 0

    def condition(self, at: int) -> ReplicaCondition:
        status, own, all_own = self.statuses[at], self.welcomes[at], self.welcome
        if status is None:
            return "down"
        if own and all_own and _model_of(own) != _model_of(all_own):
            return "other_model"
        return status.condition if own is not None else "loading"

    def serves(self, at: int) -> bool:
        return bool(self.max_sessions[at])

    def suits(self, fingerprint: str | None) -> bool:
        return (
            fingerprint is None or self.welcome is None or self.welcome.fingerprint == fingerprint
        )

    def is_like(self, other: _Group) -> bool:
        """Whether a text may go on here that began there."""
        if self is other:
            return True
        mine, theirs = self.welcome, other.welcome
        if mine is None or theirs is None:
            return False
        return _model_of(mine) == _model_of(theirs)

    def place(self, key: int, avoid: Sequence[int]) -> int:
        """The replica of a session; NOWHERE if none has room. Those placed since the last status
        may have ended since: what they take counts for less where nobody has room otherwise."""
        beyond = self.num_sessions < MOST_PLACED * self.max_sessions
        for room in (
            has_room(self.num_sessions, self.max_sessions),
            has_room(self.num_told, self.max_sessions) & beyond,
        ):
            room[avoid] = False
            if room.any():
                return place(key, self._seeds, room)
        return NOWHERE

    def offer(self, at: int) -> Offer:
        status = self.statuses[at]
        assert status is not None
        fit = VerificationFit(status.pass_fixed_s, status.pass_s_per_session, status.pass_s_per_row)
        return offer_of(self._profile, fit, int(self.num_sessions[at]))


def _model_of(welcome: Welcome) -> tuple[str, str]:
    return welcome.target, welcome.fingerprint


def _best(
    groups: Sequence[_Group], key: int, avoid: Collection[_Place], budgets: Budgets
) -> _Place:
    places = {}
    for group in groups:
        at = group.place(key, [place.at for place in avoid if place.group is group])
        if at != NOWHERE:
            places[group.target.name] = _Place(group, at)
    if not places:
        raise _none_serves(groups)
    chosen = choose([place.group.offer(place.at) for place in places.values()], budgets)
    return places[chosen.target]


def _budgets(wish: Wish) -> Budgets:
    """The name has been looked up before."""
    return Budgets(
        max_s_per_token=wish.max_s_per_token,
        max_joules_per_token=wish.max_joules_per_token,
        max_cost_per_token=wish.max_cost_per_token,
        min_quality=wish.min_quality,
    )


def _none_serves(groups: Sequence[_Group]) -> MultispinError:
    names = ", ".join(group.target.name for group in groups) or "any target"
    if any(group.max_sessions.any() for group in groups):
        text, code = f"no replica of {names} has room: try again later", "overloaded"
    else:
        text, code = f"no replica of {names} serves now: try again in a moment", "loading"
    return PeerError(text, code=code, retry_after_s=RETRY_S)
