"""A part of a benchmark in a process of its own: devices, or co-located speculation.

Run by bench.run as ``python -m multispin.bench.child``: a job as one line of JSON on standard
input, a line of JSON on standard output for whatever there is to tell, the figures as the last.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TypeAlias

import msgspec

from multispin.bench.colocated import Colocate, colocate
from multispin.bench.devices import Play, Wrote, play
from multispin.bench.measures import Measured
from multispin.bench.peer import Stream, stream
from multispin.errors import BadInput, MultispinError

Job: TypeAlias = Play | Colocate | Stream


class Figures(msgspec.Struct, frozen=True, tag=True):
    measured: Measured


class Failed(msgspec.Struct, frozen=True, tag=True):
    """``bad_input`` is (field, value, remedy) if the caller erred."""

    code: str
    message: str
    bad_input: tuple[str, str, str] | None = None


Line: TypeAlias = Wrote | Figures | Failed


def main() -> None:
    # What libraries print must not mix with the lines.
    lines = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    encoder = msgspec.json.Encoder()

    def tell(line: Line) -> None:
        lines.write(encoder.encode(line) + b"\n")
        lines.flush()

    try:
        tell(Figures(_do(msgspec.json.decode(sys.stdin.readline(), type=Job), tell)))
    except* MultispinError as group:
        error = group.exceptions[0]
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        tell(_failed(error))


def _do(job: Job, tell) -> Measured:  # type: ignore[no-untyped-def]
    match job:
        case Play():
            return asyncio.run(play(job, tell))
        case Stream():
            return asyncio.run(stream(job, tell))
        case Colocate():
            return colocate(job, tell)


def _failed(error: Exception) -> Failed:
    if isinstance(error, BadInput):
        return Failed(error.code, str(error), (error.field, str(error.value), error.remedy))
    assert isinstance(error, MultispinError)
    return Failed(error.code, str(error))


if __name__ == "__main__":
    main()
