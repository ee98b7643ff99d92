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
from multispin.net.address import Address, parse_address
from multispin.net.device import Device
from multispin.net.line import Dial, Line
from multispin.net.link import DeviceLink
from multispin.net.observer import Observer
from multispin.net.websocket import WebSocketTransport
from multispin.types import Offline

NGRAM_ORDER = 3  # one less than the target of the same name: a drafter should be the weaker one
NGRAM_CONTEXT = 1 << 16  # tokens; it looks at the last few only
REPLAY_PREFIX = "replay:"


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


async def connect(
    server: Address | str,
    options: DrafterOptions,
    observers: Sequence[Observer] = (),
    *,
    others: Sequence[Address] = (),
    offline: Offline = "wait",
    rng: random.Random | None = None,
) -> Device:
    """Load the drafter, connect, agree on the vocabulary.

    Whenever the link is lost, the server has the next one, or the first of the ``others`` that
    answers. Raise BadInput when none answers now, PeerError when the server declines.
    """
    drafter = await asyncio.to_thread(_load, options)
    is_ngram = options.draft == "ngram"  # which is made of what the server says
    if offline == "draft" and not is_ngram:
        _check_alone(drafter, options.draft)
    own = drafter.vocabulary if drafter else None
    fingerprint = own.fingerprint if own else None

    async def dial(address: Address) -> DeviceLink:
        transport = await WebSocketTransport.connect(address)
        try:
            return await DeviceLink.greet(
                transport,
                options.draft,
                fingerprint,
                options.spectral_efficiency,
                observers,
                pads=options.pads,
            )
        except BaseException:
            await transport.close()
            raise

    first = parse_address(server) if isinstance(server, str) else server
    dials = [functools.partial(dial, address) for address in (first, *others)]
    link = await _first(dials)
    try:
        if is_ngram:
            drafter = await _ngram(link, options)
            if offline == "draft":
                _check_alone(drafter, options.draft)
    except BaseException:
        await link.close()
        raise
    line = Line(link, dials, rng=rng)
    return Device(line, drafter, offline=offline, draft_s_per_token=options.draft_s_per_token)


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
