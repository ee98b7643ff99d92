"""From the name of a drafter to a device that is connected with it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
from collections.abc import Sequence

import msgspec

from multispin.core.drafter import Drafter, LookupDrafter, ModelDrafter
from multispin.core.mixed import MixedDrafter
from multispin.core.replay import ReplayDrafter
from multispin.errors import BadInput, MultispinError
from multispin.lm.llama import LlamaModel
from multispin.lm.ngram import NgramModel, byte_vocabulary, corpus
from multispin.lm.record import read_record
from multispin.net.address import Address, elsewhere, parse_address
from multispin.net.device import Device
from multispin.net.line import Dial, Line
from multispin.net.link import DeviceLink
from multispin.net.observer import Observer
from multispin.net.router import Router, check_wish
from multispin.net.websocket import WebSocketTransport
from multispin.types import Offline
from multispin.wire.frames import Wish

NGRAM_ORDER = 3  # one less than the target of the same name: a drafter should be the weaker one
NGRAM_CONTEXT = 1 << 16  # tokens; it looks at the last few only
REPLAY_PREFIX = "replay:"
NOTHING = Wish()


class DrafterOptions(msgspec.Struct, frozen=True):
    """How to load a device's drafter. ``path`` is the file that the catalog found for a model."""

    draft: str
    path: str | None = None
    num_sequences: int = 1
    context_length: int = 4096
    threads: int = 1
    gpu_layers: int = 0
    draft_s_per_token: float = 0.0
    spectral_efficiency: float = 1.0
    pads: bool = False
    cell: str = ""  # the radio site that it is in


async def connect(
    server: Address | str,
    options: DrafterOptions,
    observers: Sequence[Observer] = (),
    *,
    others: Sequence[Address] = (),
    offline: Offline = "wait",
    wish: Wish = NOTHING,
    rng: random.Random | None = None,
) -> Device:
    """Load the drafter, connect, agree on the vocabulary.

    Whenever the link is lost, the server has the next one, or the first of the ``others`` that
    answers. Servers may be directories: then a replica is met that would serve the ``wish``. Raise
    BadInput when none answers now, PeerError when the server declines.
    """
    drafter = await asyncio.to_thread(_load, options)
    is_ngram = options.draft == "ngram"  # which is made of what the server says
    if offline == "draft" and not is_ngram:
        _check_alone(drafter, options.draft)
    first = parse_address(server) if isinstance(server, str) else server
    dialler = _Dialler(first, options, observers)
    if drafter is not None and drafter.vocabulary is not None:
        dialler.fingerprint = drafter.vocabulary.fingerprint
    dials = [functools.partial(dialler.dial, address) for address in (first, *others)]
    line = Line(await _first(dials), dials, rng=rng)
    router = Router(line, dialler.dial_replica)
    try:
        link = await _met(router, wish)
        if is_ngram:
            drafter = await _ngram(link, options)
            if offline == "draft":
                _check_alone(drafter, options.draft)
            if router.has_directory:  # which may have targets of several vocabularies
                dialler.fingerprint = link.welcome.fingerprint
    except BaseException:
        await router.close()
        raise
    return Device(router, drafter, offline=offline, draft_s_per_token=options.draft_s_per_token)


async def _met(router: Router, wish: Wish) -> DeviceLink:
    """A server that would serve the wish."""
    if router.has_directory:
        return await router.meet(wish)
    check_wish(wish, router.welcome, lambda name: f"--{name.replace('_', '-')}")
    return await router.line.link()


class _Dialler:
    """Says hello for one drafter. What shows the server at the ``first`` address who we are, or the
    directory that was reached last, is shown to replicas."""

    def __init__(
        self, first: Address, options: DrafterOptions, observers: Sequence[Observer]
    ) -> None:
        self.fingerprint: str | None = None  # None: the drafter takes any vocabulary
        self._directory = first
        self._options = options
        self._observers = observers

    async def dial(self, address: Address, number: int = 0) -> DeviceLink:
        options = self._options
        transport = await WebSocketTransport.connect(address)
        try:
            link = await DeviceLink.greet(
                transport,
                options.draft,
                self.fingerprint,
                options.spectral_efficiency,
                self._observers,
                pads=options.pads,
                cell=options.cell,
                number=number,
            )
        except BaseException:
            await transport.close()
            raise
        if link.welcome.is_directory:
            self._directory = address
        return link

    async def dial_replica(self, server: str, number: int) -> DeviceLink:
        return await self.dial(elsewhere(self._directory, server), number)


async def _first(dials: Sequence[Dial]) -> DeviceLink:
    for dial in dials[:-1]:
        with contextlib.suppress(MultispinError):
            return await dial()
    return await dials[-1]()


def _check_alone(drafter: Drafter | None, name: str) -> None:
    """Raise BadInput for one that does not know what the tokens say that it drafts."""
    if drafter is None or drafter.vocabulary is None:
        raise BadInput("--offline", "draft", f"needs a model that drafts, and --draft is {name}")


def _load(options: DrafterOptions) -> Drafter | None:
    if options.draft == "lookup":
        return LookupDrafter()
    if options.draft.startswith(REPLAY_PREFIX):
        record = read_record(options.draft.removeprefix(REPLAY_PREFIX), "--draft")
        return MixedDrafter(ReplayDrafter(record))
    if options.path is None:
        return None
    model = LlamaModel(
        path=options.path,
        name=options.draft,
        num_sequences=options.num_sequences,
        context_length=options.context_length,
        threads=options.threads,
        gpu_layers=options.gpu_layers,
    )
    return MixedDrafter(ModelDrafter(model))


async def _ngram(link: DeviceLink, options: DrafterOptions) -> Drafter:
    """The n-gram model speaks any vocabulary: it learns its text in the target's token ids. What
    they say it knows where the target is its like."""
    ids, own = await link.tokenize(corpus()), byte_vocabulary()
    knows = own.fingerprint == link.welcome.fingerprint
    model = await asyncio.to_thread(
        NgramModel.from_tokens,
        ids,
        link.welcome.vocabulary_size,
        own if knows else None,
        order=NGRAM_ORDER,
        num_sequences=options.num_sequences,
        context_length=NGRAM_CONTEXT,
    )
    return MixedDrafter(ModelDrafter(model, owns_vocabulary=knows))
