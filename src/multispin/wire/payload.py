"""Bits on the uplink per drafted token and per draft, for each way of sending a draft.

``coupled``       ids and levels of confidence, as the product sends them (greedy does the same)
``rejection-N``   the same, and with each token its distribution over N tokens, as the product does
``ids``           ids alone, ceil(log2 V) bits each
``top-N``         N probabilities of 16 bits with their ids, N (16 + ceil(log2 V)): arXiv 2606.04581
``full``          all V probabilities at 16 bits

The first two are measured on the frames of `multispin.wire.frames` and pay for these and the
headers that carry them once per draft; the others are the literature's, which pays for neither.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from multispin.errors import BadInput
from multispin.wire.frames import TRANSPORT_BITS, Draft, encode, id_bits, pack_ids, pack_tokens

PROBABILITY_BITS = 16
MAX_VOCABULARY = 1 << 24
_TOKENS = 8  # fill whole bytes at any size of id


class Payload(NamedTuple):
    bits_per_token: float
    bits_per_draft: float


@cache
def payload(mode: str, vocabulary_size: int) -> Payload:
    """What a draft costs under a mode's name. Raises BadInput for an unknown one."""
    if not 2 <= vocabulary_size <= MAX_VOCABULARY:
        raise BadInput("vocabulary_size", vocabulary_size, f"must be 2 to {MAX_VOCABULARY} tokens")
    bits = (vocabulary_size - 1).bit_length()
    if mode == "ids":
        return Payload(bits, 0)
    if mode == "full":
        return Payload(PROBABILITY_BITS * vocabulary_size, 0)
    if mode == "coupled":
        return _measured(vocabulary_size, 0)
    kind, _, count = mode.rpartition("-")
    if kind not in ("rejection", "top") or not count.isdecimal():
        raise BadInput(
            "payload", repr(mode), 'must be "coupled", "rejection-N", "ids", "top-N" or "full"'
        )
    num_kept = int(count)
    most = min(vocabulary_size, 1 << PROBABILITY_BITS)
    if not 1 <= num_kept <= most:
        raise BadInput("payload", repr(mode), f"must keep 1 to {most} of the tokens")
    if kind == "top":
        return Payload(num_kept * (PROBABILITY_BITS + bits), 0)
    return _measured(vocabulary_size, num_kept)


def _measured(vocabulary_size: int, num_kept: int) -> Payload:
    empty, some = (_frame_bits(vocabulary_size, num_kept, n) for n in (0, _TOKENS))
    return Payload((some - empty) // _TOKENS, empty + TRANSPORT_BITS)


def _frame_bits(vocabulary_size: int, num_kept: int, num_tokens: int) -> int:
    """Bits of a frame with this many tokens somewhere in a text."""
    bits = id_bits(vocabulary_size)
    ids = np.zeros(num_tokens, np.int32)
    proposal = (pack_ids([0] * num_kept, bits), bytes(2 * num_kept))
    frame = Draft(
        session=1,
        epoch=1,
        start=1000,
        digest=bytes(8),
        tokens=pack_tokens(ids, ids.astype(np.uint8), bits),
        proposals=[proposal] * num_tokens if num_kept else [],
    )
    return 8 * len(encode(frame))
