"""The parts of a benchmark as processes: the server, then devices, in one mode after the other."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from multispin.bench.child import Failed, Figures, Job, Line
from multispin.bench.devices import DeviceSpeed, Play, Wrote
from multispin.bench.measures import Measured
from multispin.errors import BadInput, EngineFailed, MultispinError, PeerError

START_TIMEOUT_S = 600.0  # of a server: large models load slowly, and may have to be pulled
DYING_S = 3.0  # of a server that left its devices: why, it says last
FIXED_LENGTH = 8
LONGEST_DRAFT = 32

Progress = Callable[[Wrote], None]


class Setup(NamedTuple):
    """How the server of a mode is started, and how far its devices draft."""

    arguments: tuple[str, ...]
    draft_length: int

    def under(self, policy: str | None) -> Setup:
        """The same under another policy, where the devices are under one or could be."""
        if policy is None or self.draft_length != LONGEST_DRAFT:
            return self
        return self._replace(arguments=(*self.arguments[:2], "--policy", policy))


SETUPS = {
    "server-only": Setup(("--mode", "stop-and-wait"), 0),
    "fixed": Setup(("--mode", "stop-and-wait"), FIXED_LENGTH),
    "rounds": Setup(("--mode", "rounds", "--policy", "heterogeneous"), LONGEST_DRAFT),
    "stop-and-wait": Setup(("--mode", "stop-and-wait", "--policy", "heterogeneous"), LONGEST_DRAFT),
    "window": Setup(("--mode", "window"), LONGEST_DRAFT),
}


class Served(NamedTuple):
    """Figures of a run, and of the server in its measuring time."""

    measured: Measured
    server_busy: float | None = None  # share of the time that was spent in the model
    num_batches: int | None = None
    num_rows: int | None = None
    num_replay_differences: int | None = None


async def run_devices(
    setup: Setup,
    arguments: Sequence[str],
    record: str,
    devices: list[DeviceSpeed],
    seconds: float,
    warm: bool,
    progress: Progress,
) -> Served:
    """One mode: a fresh server, devices that write, and the server's counters around them."""
    states: list[dict[str, Any]] = []
    async with serving([*arguments, *setup.arguments]) as address:

        async def hear(wrote: Wrote) -> None:
            if not states or wrote.share == 1.0:
                states.append(await asyncio.to_thread(cell_state, address))
            progress(wrote)

        job = Play(address, record, devices, setup.draft_length, seconds, warm)
        measured = await run_child(job, hear)
    first, last = states[0], states[-1]
    spent = {name: last["counters"][name] - count for name, count in first["counters"].items()}
    return Served(
        measured,
        spent["forward_s"] / (last["clock_s"] - first["clock_s"]),
        spent["num_batches"],
        spent["num_rows"],
        spent["num_replay_differences"],
    )


async def run_alone(job: Job, progress: Progress) -> Served:
    """A run that needs no server of ours."""

    async def hear(wrote: Wrote) -> None:
        progress(wrote)

    return Served(await run_child(job, hear))


@contextlib.asynccontextmanager
async def serving(arguments: Sequence[str]) -> AsyncIterator[str]:
    """`multispin serve` on loopback; its address. What it says is shown if it fails to start."""
    with tempfile.TemporaryFile() as said:
        process = await _start("multispin", "serve", "--port", "0", *arguments, stderr=said)
        try:
            assert process.stdout is not None
            async with asyncio.timeout(START_TIMEOUT_S):
                line = await process.stdout.readline()
            if not line:
                raise await _epitaph(process, said)
            yield line.decode().strip()
        except TimeoutError:
            raise EngineFailed(f"the server did not start in {START_TIMEOUT_S:g} s") from None
        except PeerError as error:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DYING_S):
                    raise await _epitaph(process, said) from error
            raise
        finally:
            await _end(process)


async def run_child(job: Job, hear) -> Measured:  # type: ignore[no-untyped-def]
    """Run a job to its end; ``hear`` is awaited for each line of progress."""
    with tempfile.TemporaryFile() as said:
        process = await _start(
            "multispin.bench.child", stdin=asyncio.subprocess.PIPE, stderr=said, limit=1 << 24
        )
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(msgspec.json.encode(job) + b"\n")
            async for data in process.stdout:
                match msgspec.json.decode(data, type=Line):
                    case Wrote() as wrote:
                        await hear(wrote)
                    case Figures(measured):
                        return measured
                    case Failed(bad_input=None) as failed:
                        raise PeerError(failed.message, code=failed.code)
                    case Failed(bad_input=wrong, code=code):
                        assert wrong is not None
                        raise BadInput(*wrong, code=code)
            raise await _epitaph(process, said)
        finally:
            await _end(process)


def cell_state(address: str) -> dict[str, Any]:
    """The server's counters, from its ``/api/cell``."""
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", "/api/cell")
        state: dict[str, Any] = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return state


async def _start(module: str, *arguments: str, **options: Any) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        # Ctrl-C is for the benchmark, which then ends its processes in good order.
        start_new_session=True,
        **options,
    )


async def _epitaph(process: asyncio.subprocess.Process, said) -> MultispinError:  # type: ignore[no-untyped-def]
    """What a process that ended too early said last; its exit code tells whose mistake it was."""
    code = await process.wait()
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines() or [f"it exited with {code}"]
    message = lines[-1].removeprefix("error: ")
    return MultispinError(message, code="bad_input" if code == 2 else "engine_failed")


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(10):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
