"""llama.cpp's own server on the same model and prompts: what a person would run otherwise.

The prebuilt one of the package xllamacpp. Streams ask over HTTP on loopback, without the delays of
a link: each for one text after the other, as OpenAI's completions.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec

from multispin.bench.devices import TELL_S, Tell, Wrote
from multispin.bench.measures import Measured, Spent, TextLog, measure
from multispin.errors import BadInput, EngineFailed
from multispin.lm.record import Record, read_record


class Stream(msgspec.Struct, frozen=True, tag=True):
    """Let so many streams ask for the texts of a record for so many seconds.

    ``draft`` is the file of a model that llama.cpp's server itself drafts with.
    """

    record: str
    num_streams: int
    seconds: float
    target: str
    draft: str | None
    context_length: int
    threads: int
    gpu_layers: int


class PeerStream:
    """One client; its counters are those that the server tells with each token."""

    def __init__(self, port: int) -> None:
        self.logs: list[TextLog] = []
        self.has_written = asyncio.Event()
        self._port = port
        self._finished = self._current = Spent()

    @property
    def spent(self) -> Spent:
        return Spent(*(a + b for a, b in zip(self._finished, self._current, strict=True)))

    async def run(self, record: Record, number: int, num_streams: int) -> None:
        while True:
            text = record.texts[number % len(record.texts)]
            number += num_streams
            log = TextLog(time.monotonic())
            self.logs.append(log)
            async for timings in self._complete(text.prompt, len(text.path) // 4):
                before, num_tokens = self._current.num_tokens, timings["predicted_n"]
                num_accepted = timings.get("draft_n_accepted", 0)
                self._current = Spent(num_tokens, num_tokens - num_accepted)
                log.arrivals.append((time.monotonic(), num_tokens - before))
                self.has_written.set()
            self._finished, self._current = self.spent, Spent()

    async def _complete(self, prompt: str, max_tokens: int) -> AsyncIterator[dict[str, Any]]:
        body = msgspec.json.encode(
            {
                "prompt": prompt,
                "max_tokens": max_tokens,
                "temperature": 0,
                "stream": True,
                "timings_per_token": True,
            }
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(
                b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            status = await reader.readline()
            if b" 200 " not in status:
                raise EngineFailed(f"llama.cpp's server answered {status.decode().strip()}")
            # Events are lines of the form 'data: …'; what frames them is skipped.
            async for line in reader:
                if line.startswith(b"data: {"):
                    event = msgspec.json.decode(line[len(b"data: ") :])
                    if "timings" in event:
                        yield event["timings"]
        finally:
            writer.close()


async def stream(
    job: Stream, tell: Tell, *, clock: Callable[[], float] = time.monotonic
) -> Measured:
    """Measuring begins when every stream has its first token."""
    record = read_record(job.record, "--record")
    port = _free_port()
    server = await asyncio.to_thread(_start, job, port)
    streams = [PeerStream(port) for _ in range(job.num_streams)]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(one.run(record, number, len(streams)))
            for number, one in enumerate(streams)
        ]
        await asyncio.gather(*(one.has_written.wait() for one in streams))
        begin = clock()
        before = _spent(streams)
        while (now := clock()) < begin + job.seconds:
            tell(Wrote(_spent(streams).num_tokens - before.num_tokens, (now - begin) / job.seconds))
            await asyncio.sleep(min(TELL_S, begin + job.seconds - now))
        spent = Spent(*(b - a for a, b in zip(before, _spent(streams), strict=True)))
        tell(Wrote(spent.num_tokens, 1.0))
        for task in tasks:
            task.cancel()
    del server
    return measure([log for one in streams for log in one.logs], begin, now, spent)


def _spent(streams: Sequence[PeerStream]) -> Spent:
    return Spent(*(sum(column) for column in zip(*(one.spent for one in streams), strict=True)))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _start(job: Stream, port: int) -> object:
    """The server; it lives as long as the object."""
    try:
        import xllamacpp  # type: ignore[import-untyped]  # noqa: PLC0415
    except ImportError:
        raise BadInput("--peer", "", "needs the package xllamacpp: pip install xllamacpp") from None
    params = xllamacpp.CommonParams()
    params.model.path = job.target
    params.n_parallel = job.num_streams
    params.n_ctx = job.num_streams * job.context_length
    params.cpuparams.n_threads = job.threads
    params.cpuparams_batch.n_threads = job.threads
    params.n_gpu_layers = job.gpu_layers
    params.port = port
    if job.draft is not None:
        draft = params.speculative.draft
        draft.mparams.path = job.draft
        draft.n_gpu_layers = job.gpu_layers
        draft.cpuparams.n_threads = job.threads
        draft.cpuparams_batch.n_threads = job.threads
        kinds = xllamacpp.common_speculative_type
        params.speculative.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
    return xllamacpp.Server(params)
