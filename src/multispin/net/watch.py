"""Everybody who watches one end of the links."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from multispin.core.controller import ControlSettings
from multispin.net import logs, tracing
from multispin.net.observer import Observer
from multispin.net.telemetry import Telemetry


@dataclass(frozen=True)
class Watch:
    telemetry: Telemetry
    observers: Sequence[Observer]


@contextmanager
def watch(
    side: Literal["device", "server"], control: ControlSettings | None = None
) -> Iterator[Watch]:
    """Counts always; events where the log wants them; spans where the environment does."""
    telemetry = Telemetry(control)
    events = [logs.EventLog()] if logs.log.isEnabledFor(logging.INFO) else []
    with tracing.tracing(side) as spans:
        yield Watch(telemetry, [telemetry, *events, *spans])
