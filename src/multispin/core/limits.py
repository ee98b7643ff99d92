"""What a server is set to allow."""

from __future__ import annotations

from dataclasses import dataclass, field

from multispin.core.batch import BatchLimits
from multispin.core.controller import ControlSettings


@dataclass(frozen=True)
class ServerLimits:
    max_draft_length: int = 32
    max_waiting: int = 256  # sessions queued for a free sequence
    share_prefixes: bool = False  # between tenants: how fast a prompt is read tells who has it, too
    batch: BatchLimits = field(default_factory=BatchLimits)
    control: ControlSettings = field(default_factory=ControlSettings)
