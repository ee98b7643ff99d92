"""The engine in a supervised child process: if llama.cpp aborts, the server stays up."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable

import msgspec
import numpy as np

from multispin.core.engine import Batch, Engine, EngineInfo, StepResult
from multispin.errors import EngineFailed, EngineLost, MultispinError
from multispin.net.child import Child, ChildDied, Failed
from multispin.net.engine_child import (
    Load,
    Loaded,
    Request,
    Response,
    Step,
    Stepped,
    Tokenized,
    TokenizeText,
)
from multispin.net.loading import TargetOptions, load_target
from multispin.types import TokenIds

ARGUMENTS = (sys.executable, "-m", "multispin.net.engine_child")
CRASHES = frozenset(
    -number
    for number in (signal.SIGILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE)
)  # exit codes of a process that native code took down
SHORT = 1024  # characters of a text: 2 ms where it was measured
NUM_SHARES = 16  # so many short texts are tokenized between two passes
RESTART_DELAY_S = 0.2  # doubled at each failed restart in a row
MAX_RESTART_DELAY_S = 10.0

log = logging.getLogger("multispin.engine")


class LocalEngine:
    """The engine in this process, for models that cannot crash it."""

    ready = True

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.info = engine.info

    async def step(self, batch: Batch) -> StepResult:
        await asyncio.sleep(0)  # the links have their turn
        return self._engine.step(batch)

    async def tokenize(self, text: str, *, parse_special: bool) -> TokenIds:
        return self._engine.tokenize(text, parse_special)

    async def close(self) -> None: ...


class EngineProcess:
    """A child that dies is replaced; the next step says so. While that fails, because its file is
    broken or memory is short, everybody waits and the next attempt follows."""

    info: EngineInfo

    def __init__(self, options: TargetOptions) -> None:
        self._options = options
        self._decoder: msgspec.msgpack.Decoder[Response] = msgspec.msgpack.Decoder(Response)
        self._turn = asyncio.Lock()  # of the text that waits for shares
        self._shares = asyncio.Semaphore(NUM_SHARES)
        self._up = asyncio.Event()  # set while requests make sense
        self._lost: str | None = None  # how the child died whose caches nobody has missed yet
        self._child: Child[Request, Response] | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        return self._up.is_set()

    async def start(self) -> None:
        """Start the child and load the model; what goes wrong there is raised here."""
        self.info = await self._spawn()
        self._up.set()
        self._watcher = asyncio.create_task(self._watch())

    def step(self, batch: Batch) -> Awaitable[StepResult]:
        """The pass begins at once, before its result is awaited, unless the child is down.

        Raise EngineLost when the caches are gone.
        """
        begins = self.ready and self._lost is None
        return self._result(self._running.ask(Step(batch)) if begins else None)

    async def _result(self, answer: asyncio.Future[Response] | None) -> StepResult:
        if answer is not None:
            try:
                stepped = await answer
                assert isinstance(stepped, Stepped)
                return stepped.result
            except ChildDied:
                self._up.clear()
        await self._up.wait()
        lost, self._lost = self._lost, None
        raise EngineLost(f"{lost}; it has been restarted")

    async def tokenize(self, text: str, *, parse_special: bool) -> TokenIds:
        """Between two passes, beside others that are short. Raise EngineLost for a text in which
        the engine died, and died again when it had nothing else to do."""
        request = TokenizeText(text, parse_special)
        try:
            tokenized = await self._tokenized(request, min(1 + len(text) // SHORT, NUM_SHARES))
        except EngineLost:  # perhaps by chance, or in another's text
            tokenized = await self._tokenized(request, NUM_SHARES)
        assert isinstance(tokenized, Tokenized)
        return np.frombuffer(tokenized.ids, np.dtype("<i4"))

    async def _tokenized(self, request: TokenizeText, num_shares: int) -> Response:
        """With so many of the shares in what may hold up a pass; with all of them, alone."""
        num_taken = 0
        try:
            async with self._turn:
                while num_taken < num_shares:
                    await self._shares.acquire()
                    num_taken += 1
            await self._up.wait()
            return await self._exchange(request)
        finally:
            for _ in range(num_taken):
                self._shares.release()

    async def close(self) -> None:
        """End the child and wait for it."""
        self._up.clear()
        if self._watcher is not None:
            self._watcher.cancel()
        if self._child is not None:
            self._child.kill()
            await self._child.exit_code()

    # --- the child -----------------------------------------------------------------------------

    async def _spawn(self) -> EngineInfo:
        self._child = await Child[Request, Response].start(ARGUMENTS, self._decoder)
        try:
            loaded = await self._exchange(Load(self._options))
        except EngineLost as error:
            code = "build_crashes" if await self._child.exit_code() in CRASHES else None
            raise EngineFailed(str(error), code=code) from None
        except MultispinError:
            self._child.kill()
            raise
        assert isinstance(loaded, Loaded)
        return loaded.info

    @property
    def _running(self) -> Child[Request, Response]:
        assert self._child is not None, "start first"
        return self._child

    async def _watch(self) -> None:
        """Replace the child whenever it dies, waiting longer each time in a row."""
        num_failed = 0
        while True:
            code = await self._running.exit_code()
            self._up.clear()
            self._lost = self._lost or _epitaph(code)
            await asyncio.sleep(min(RESTART_DELAY_S * 2**num_failed, MAX_RESTART_DELAY_S))
            try:
                self._check_same(await self._spawn())
                num_failed = 0
                self._up.set()
            except (MultispinError, OSError) as error:
                num_failed += 1
                log.error("the engine cannot be restarted, which is tried again: %s", error)

    def _check_same(self, info: EngineInfo) -> None:
        """Texts that have begun cannot go on with another model."""
        if msgspec.structs.replace(info, passes=self.info.passes) != self.info:
            self._running.kill()
            raise EngineFailed("the model's file has become another model: restart the server")

    async def _exchange(self, request: Request) -> Response:
        child = self._running
        try:
            answer = await child.ask(request)
        except ChildDied:
            self._up.clear()
            raise EngineLost(_epitaph(await child.exit_code())) from None
        if isinstance(answer, Failed):
            raise answer.error(EngineFailed)
        return answer


def _epitaph(code: int) -> str:
    if code >= 0:
        return f"the engine's process ended with exit code {code}"
    name = signal.Signals(-code).name
    if code in CRASHES:
        return (
            f"the engine's process crashed ({name}) inside llama.cpp: if it does so at start, "
            "this build does not fit the processor; `multispin doctor` says what to do"
        )
    return f"the engine's process was ended by {name}"


async def start_engine(options: TargetOptions) -> LocalEngine | EngineProcess:
    """The engine for a target, ready to step."""
    if options.target == "ngram":
        return LocalEngine(load_target(options))
    engine = EngineProcess(options)
    try:
        await engine.start()
    except BaseException:
        await engine.close()
        raise
    return engine
