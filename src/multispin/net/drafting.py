"""From the name of a drafter to a device that is connected with it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from multispin.core.drafter import Drafter, LookupDrafter, ModelDrafter
from multispin.core.mixed import MixedDrafter
from multispin.core.replay import ReplayDrafter
from multispin.lm.llama import LlamaModel
from multispin.lm.ngram import NgramModel, corpus
from multispin.lm.record import read_record
from multispin.net.device import Device
from multispin.net.link import DeviceLink
from multispin.net.observer import Observer
from multispin.net.websocket import WebSocketTransport

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


async def connect(
    server: str, options: DrafterOptions, observers: Sequence[Observer] = ()
) -> Device:
    """Load the drafter, connect, agree on the vocabulary.

    Raise BadInput when nobody answers at ``server``, PeerError when the server declines.
    """
    drafter = _load(options)
    own = drafter.vocabulary if drafter else None
    transport = await WebSocketTransport.connect(server)
    try:
        link = await DeviceLink.greet(
            transport,
            options.draft,
            own.fingerprint if own else None,
            options.spectral_efficiency,
            observers,
        )
        if options.draft == "ngram":
            drafter = await _ngram(link, options)
    except BaseException:
        await transport.close()
        raise
    return Device(link, drafter, draft_s_per_token=options.draft_s_per_token)


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
    """The n-gram model speaks any vocabulary: it learns its text in the target's token ids."""
    model = NgramModel.from_tokens(
        await link.tokenize(corpus()),
        link.welcome.vocabulary_size,
        order=NGRAM_ORDER,
        num_sequences=options.num_sequences,
        context_length=NGRAM_CONTEXT,
    )
    return MixedDrafter(ModelDrafter(model, owns_vocabulary=False))
