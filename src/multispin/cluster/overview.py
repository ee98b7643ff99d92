"""What `cluster status` knows: of each replica and directory, by its keeper and by itself."""

from __future__ import annotations

import msgspec

from multispin.cell.deployment import DIRECTORY, Deployment
from multispin.cluster.keeper import KeeperState
from multispin.wire.replica import Status


class ReplicaRow(msgspec.Struct, frozen=True):
    """A replica or a directory. What a replica itself has told is None where there is no link to
    it (it is "silent" if it should serve); directories are not watched."""

    keeper: KeeperState
    serves: bool
    is_current: bool = True  # as the file has it now; else it is about to be replaced
    num_sessions: int | None = None
    goodput_tokens_per_s: float | None = None

    @property
    def condition(self) -> str:
        keeper = self.keeper
        if keeper.condition == "up" and not self.is_current:
            return "to be replaced"
        return "silent" if keeper.condition == "up" and not self.serves else keeper.condition


class Overview(msgspec.Struct, frozen=True):
    """``trouble``: why Ray does not say what is here, where it does not."""

    deployment: Deployment
    num_wanted: dict[str, int]
    rows: list[ReplicaRow]
    trouble: str = ""

    @property
    def directories(self) -> list[str]:
        """Addresses of those that serve."""
        directories = [row for row in self.rows if row.keeper.target == DIRECTORY]
        return [row.keeper.server for row in directories if row.serves]

    def lacking(self) -> list[str]:
        """One line for each thing that keeps the cluster from being as its file has it."""
        lacking = []
        for row in self.rows:
            if not row.serves or not row.is_current:
                why = f": {row.keeper.why}" if row.keeper.why else ""
                lacking.append(f"{row.keeper.name}: {row.condition}{why}")
        for target in self.deployment.targets:
            num = sum(row.keeper.target == target.name for row in self.rows)
            if num < target.min_replicas:
                lacking.append(f"{target.name}: {num} of {target.min_replicas} replicas are there")
        num = sum(row.keeper.target == DIRECTORY for row in self.rows)
        if num < len(self.deployment.cluster.directory_ports):
            lacking.append("not all directories are there")
        return lacking


def row(keeper: KeeperState, status: Status | None, is_current: bool = True) -> ReplicaRow:
    is_up = keeper.condition == "up"
    if status is None:
        return ReplicaRow(keeper, is_up and keeper.target == DIRECTORY, is_current)
    serves = is_up and status.condition == "ok"
    return ReplicaRow(keeper, serves, is_current, status.num_sessions, status.goodput_tokens_per_s)
