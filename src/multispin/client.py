"""Texts from a server, drafted for in this process: `AsyncClient`, and `Client` for plain code."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import copy
import os
import secrets
import threading
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import (
    Any,
    Literal,
    NamedTuple,
    Self,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
    get_args,
)

import msgspec

from multispin.catalog import find_model
from multispin.core.device import Committed
from multispin.core.reading import Replaces, extended
from multispin.core.speculation import SpeculationStats
from multispin.errors import BadInput, MultispinError
from multispin.net.address import parse_address
from multispin.net.device import Device, Request
from multispin.net.drafting import REPLAY_PREFIX, DrafterOptions, connect
from multispin.net.writing import Writing
from multispin.types import (
    DRAFT_LENGTH,
    MAX_TOKENS,
    AcceptanceRule,
    FinishReason,
    Offline,
    SamplingParams,
)
from multispin.wire.frames import ChatMessage, Wish

T = TypeVar("T")
Prompt: TypeAlias = str | Sequence[Mapping[str, Any]]
Provenance: TypeAlias = Literal["accepted", "correction", "bonus", "server", "provisional"]

DRAFTERS_WITHOUT_FILE = ("lookup", "ngram", "none")
MANY = 1 << 16  # texts at a time: without a model they cost a device next to nothing
# As the command line has it.
DRAFT = "lookup"


class Drafting(TypedDict, total=False):
    """How to draft. ``draft`` is a catalog name, a GGUF path, hf:owner/repo/file.gguf, lookup,
    ngram, replay:FILE, or none: the server alone. A model drafts for ``num_sequences`` texts at a
    time; others wait."""

    draft: str
    num_sequences: int
    context_length: int
    threads: int
    gpu_layers: int


class Credentials(TypedDict, total=False):
    """Who we are, and whom we trust: an access token, or the file that has it; as PEM files the CA
    of the server, and a certificate of our own with its key."""

    token: str
    token_file: str
    ca: str
    cert: str
    key: str


class Connecting(Drafting, Credentials, total=False):
    """What a client takes. ``cell`` names the radio site whose uplink it shares."""

    cell: str


class Wishing(TypedDict, total=False):
    """Which target a text is to have, of those of a directory."""

    target: str
    max_s_per_token: float
    max_joules_per_token: float
    max_cost_per_token: float
    min_quality: int


class Options(Wishing, total=False):
    """How to write a text; what is left out is as in `multispin complete`."""

    max_tokens: int
    draft_length: int
    seed: int | None
    stop: str | Sequence[str]
    acceptance_rule: AcceptanceRule | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: dict[int, float]


class Token(NamedTuple):
    """A token, and who proposed it.

    accepted: the drafter. The server: a correction after a rejection, a bonus after a draft that
    was accepted to its end, or server: nothing was drafted, or nobody knows, as its verdict was
    lost with a link. provisional: the drafter, and nobody has judged it yet.
    """

    id: int
    provenance: Provenance


class Commit(NamedTuple):
    """Tokens that became part of a text together.

    ``text`` has whole characters and no beginning of a stop sequence: it may lag behind the tokens.
    With ``offline="draft"`` tokens may come that are ``provisional``. Those that the server then
    confirms are not repeated; a commit that ``replaces`` says from which token and character of the
    answer on, counted from 0, all that came before it is void.
    """

    text: str
    tokens: list[Token]
    provisional: bool = False
    replaces: Replaces | None = None


@dataclass(frozen=True)
class Completion:
    """A text; ``finish_reason`` is None while it is being written."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None
    prompt_tokens: int
    seed: int
    acceptance_rule: AcceptanceRule
    speculation: SpeculationStats


class AsyncClient:
    """A link to the server at HOST:PORT, and a drafter. Off loopback it is over TLS, unless the
    address begins with http://; on it, if it begins with https:// or a ``ca`` is named.

    When the link is lost another one is made, and texts go on where they were. ``offline`` says
    what becomes of them meanwhile: they wait; a model that drafts goes on alone (draft) and its
    tokens are marked as provisional; or they fail.

    ``async with AsyncClient("127.0.0.1:8600", draft="lookup") as client: ...``

    Raises BadInput for what the caller can put right, a server that does not answer included, and
    PeerError for what the server refuses; both are MultispinErrors.
    """

    def __init__(
        self, server: str, *, offline: Offline = "wait", **options: Unpack[Connecting]
    ) -> None:
        if offline not in get_args(Offline):
            raise BadInput("offline", offline, f"must be one of {', '.join(get_args(Offline))}")
        self._server = server
        self._offline: Offline = offline
        given: dict[str, Any] = {"draft": DRAFT, "threads": os.cpu_count() or 1, **options}
        names = Credentials.__annotations__
        self._credentials = {name: given.pop(name) for name in names if name in given}
        self._cell: str = given.pop("cell", "")
        self._drafting: Drafting = cast(Drafting, given)
        self._device: Device | None = None
        self._writing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        draft, path = self._drafting["draft"], None
        if draft not in DRAFTERS_WITHOUT_FILE and not draft.startswith(REPLAY_PREFIX):
            path = os.fspath(await asyncio.to_thread(find_model, draft))
        options = DrafterOptions(path=path, cell=self._cell, **self._drafting)
        is_model = path is not None or draft == "ngram"
        self._places = asyncio.Semaphore(options.num_sequences if is_model else MANY)
        try:
            address = parse_address(self._server, **self._credentials)
            self._device = await connect(address, options, offline=self._offline)
        except BadInput as error:
            field = error.field.removeprefix("--").replace("-", "_")
            raise BadInput(field, error.value, error.remedy, code=error.code) from None
        return self

    async def __aexit__(self, *error: object) -> None:
        device, self._device = self._open_device, None
        await _cancelled(self._writing)
        await device.close()

    @property
    def target(self) -> str:
        """The server's model."""
        return self._open_device.router.welcome.target

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> AsyncStream:
        """Write a text, or with chat messages ({"role", "content"}) an answer, piece by piece."""
        return AsyncStream(self, _request(prompt, **options))

    async def complete(self, prompt: Prompt, **options: Unpack[Options]) -> Completion:
        """Write a whole text."""
        stream = self.stream(prompt, **options)
        async for _ in stream:
            pass
        return stream.completion

    def _start(self, writing: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(writing)
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return task

    @contextlib.asynccontextmanager
    async def _session(self, request: Request) -> AsyncIterator[Writing]:
        """Waits for a place at the drafter."""
        device = self._open_device
        async with self._places, device.write(request) as writing:
            yield writing

    @property
    def _open_device(self) -> Device:
        if self._device is None:
            raise _closed()
        return self._device


class AsyncStream:
    """``async for commit in stream``: what is committed, as it is.

    Leaving the iteration early ends the session. Another iteration writes the text anew.
    """

    def __init__(self, client: AsyncClient, request: Request) -> None:
        self._client = client
        self._request = request
        self._text = ""
        self._writing: Writing | None = None

    async def __aiter__(self) -> AsyncIterator[Commit]:
        # A task of its own drafts on while the caller does other things, and ends with the client.
        commits: asyncio.Queue[Commit | None] = asyncio.Queue()
        task = self._client._start(self._write(commits))
        try:
            while (commit := await commits.get()) is not None:
                yield commit
            await asyncio.wait({task})
            if task.cancelled():
                raise _closed()
            task.result()
        finally:
            await _cancelled({task})

    async def _write(self, commits: asyncio.Queue[Commit | None]) -> None:
        try:
            async with self._client._session(self._request) as self._writing:
                self._text = ""
                async for committed in self._writing:
                    self._text = extended(self._text, committed.text, committed.replaces)
                    if committed.text or committed.ids[committed.num_shown :] or committed.finish:
                        commits.put_nowait(_commit(committed))
        finally:
            commits.put_nowait(None)

    @property
    def completion(self) -> Completion:
        """What is written so far."""
        if self._writing is None:
            raise MultispinError("nothing is written yet: iterate over the stream")
        session = self._writing.session
        return Completion(
            text=self._text,
            token_ids=session.committed,
            finish_reason=session.finish,
            prompt_tokens=session.num_prompt,
            seed=self._request.seed,
            acceptance_rule=self._request.rule,
            speculation=copy.deepcopy(self._writing.stats),
        )


class Client:
    """An `AsyncClient` for code without an event loop: it has one in a thread of its own.

    Connects at once; ``close`` it, or use it in a ``with``. Several threads may share it.
    """

    def __init__(
        self, server: str, *, offline: Offline = "wait", **options: Unpack[Connecting]
    ) -> None:
        started: concurrent.futures.Future[_Running] = concurrent.futures.Future()
        client = AsyncClient(server, offline=offline, **options)
        thread = threading.Thread(
            target=lambda: asyncio.run(_live(client, started)), name="multispin-client", daemon=True
        )
        thread.start()
        self._running = started.result()
        self._stop = weakref.finalize(self, _stop, self._running, thread)  # at exit at the latest

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End all sessions and the link."""
        self._stop()

    @property
    def target(self) -> str:
        """The server's model."""
        return self._running.client.target

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Stream:
        """As AsyncClient.stream."""
        return Stream(self, self._running.client.stream(prompt, **options))

    def complete(self, prompt: Prompt, **options: Unpack[Options]) -> Completion:
        """As AsyncClient.complete."""
        return self._running.run(self._running.client.complete(prompt, **options))


class Stream:
    """As AsyncStream: ``for commit in stream``."""

    def __init__(self, client: Client, stream: AsyncStream) -> None:
        self._client = client  # which ends when nobody has it
        self._stream = stream

    def __iter__(self) -> Iterator[Commit]:
        commits, running = aiter(self._stream), self._client._running
        try:
            while (commit := running.run(_next(commits))) is not None:
                yield commit
        except GeneratorExit:  # left early: otherwise it has ended by itself
            with contextlib.suppress(MultispinError):  # closed, and with it this session
                running.run(commits.aclose())  # type: ignore[attr-defined]
            raise

    @property
    def completion(self) -> Completion:
        """What is written so far."""
        return self._stream.completion


class _Running(NamedTuple):
    """A client on an event loop in another thread."""

    client: AsyncClient
    loop: asyncio.AbstractEventLoop
    stopped: asyncio.Event

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it over there and wait."""
        if self.stopped.is_set():
            work.close()
            raise _closed()
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise _closed() from None
        finally:
            future.cancel()  # at Ctrl-C it does not go on behind our back


async def _live(client: AsyncClient, started: concurrent.futures.Future[_Running]) -> None:
    stopped = asyncio.Event()
    try:
        async with client:
            started.set_result(_Running(client, asyncio.get_running_loop(), stopped))
            await stopped.wait()
    except Exception as error:
        if started.done():
            raise
        started.set_exception(error)


def _stop(running: _Running, thread: threading.Thread) -> None:
    running.loop.call_soon_threadsafe(running.stopped.set)
    if thread is not threading.current_thread():
        thread.join()


async def _cancelled(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _next(commits: AsyncIterator[Commit]) -> Commit | None:
    return await anext(commits, None)


def _closed() -> MultispinError:
    return MultispinError("the client is closed, or was never opened: use it in a `with`")


def _request(
    prompt: Prompt,
    *,
    max_tokens: int = MAX_TOKENS,
    draft_length: int = DRAFT_LENGTH,
    seed: int | None = None,
    stop: str | Sequence[str] = (),
    acceptance_rule: AcceptanceRule | None = None,
    **sampling: Any,
) -> Request:
    wish = Wish(**{name: sampling.pop(name) for name in Wish.__struct_fields__ if name in sampling})
    params = SamplingParams(**sampling)
    params.validate()
    return Request(
        prompt=prompt if isinstance(prompt, str) else _messages(prompt),
        params=params,
        # At temperature 0 every rule is greedy.
        rule="greedy" if params.temperature == 0 else acceptance_rule or "coupled",
        seed=secrets.randbits(32) if seed is None else seed,
        max_tokens=max_tokens,
        draft_length=draft_length,
        stop=[stop] if isinstance(stop, str) else list(stop),
        provisional=True,
        wish=wish,
    )


def _messages(prompt: Sequence[Mapping[str, Any]]) -> list[ChatMessage]:
    try:
        return msgspec.convert(list(prompt), list[ChatMessage])
    except msgspec.ValidationError as error:
        raise BadInput("prompt", "(chat messages)", f"not as they should be: {error}") from None


def _commit(committed: Committed) -> Commit:
    new = _tokens(committed)[committed.num_shown :]
    return Commit(committed.text, new, committed.provisional, committed.replaces)


def _tokens(committed: Committed) -> list[Token]:
    """Each with its provenance: what follows the accepted ones is the server's own."""
    own: Provenance = "server"
    if committed.provisional:
        own = "provisional"
    elif committed.num_draft > 0:
        own = "bonus" if committed.num_accepted == committed.num_draft else "correction"
    return [
        Token(token, "accepted" if index < committed.num_accepted else own)
        for index, token in enumerate(committed.ids)
    ]
