"""What a draft costs in each wire mode: the paper's figures, and frames that really encode it."""

from __future__ import annotations

import numpy as np
import pytest

from multispin.acceptance.penalties import Context
from multispin.acceptance.proposal import propose
from multispin.errors import BadInput
from multispin.types import SamplingParams
from multispin.wire.frames import (
    TRANSPORT_BITS,
    Draft,
    encode,
    id_bits,
    pack_ids,
    pack_tokens,
)
from multispin.wire.payload import payload

LLAMA, QWEN = 32_000, 248_320  # vocabularies of the paper's two pairs


def test_the_papers_figures():
    assert payload("top-1024", LLAMA) == (31_744, 0)
    assert payload("top-1024", QWEN) == (34_816, 0)
    assert payload("full", LLAMA) == (512_000, 0)
    assert payload("top-1", LLAMA) == (31, 0)  # an id and its probability
    assert payload("ids", LLAMA) == (15, 0)
    assert payload("ids", QWEN) == (18, 0)


def draft(num_tokens: int, vocabulary_size: int, num_kept: int, rng: np.random.Generator) -> Draft:
    """A draft as a device sends it, its proposals drawn from real distributions."""
    bits = id_bits(vocabulary_size)
    ids = rng.integers(0, vocabulary_size, num_tokens).astype(np.int32)
    levels = rng.integers(0, 8, num_tokens).astype(np.uint8)
    proposals = []
    for i in range(num_tokens if num_kept else 0):
        row = rng.normal(size=vocabulary_size).astype(np.float32)
        text = Context(np.zeros(1000 + i, np.int32), 1000)
        _, (kept, counts) = propose(row, SamplingParams(temperature=1.0), 7, text, num_kept)
        proposals.append((pack_ids(kept, bits), (counts - 1).astype("<u2").tobytes()))
    return Draft(1, 1, 1000, rng.bytes(8), pack_tokens(ids, levels, bits), 0, proposals)


@pytest.mark.parametrize("vocabulary_size", [300, LLAMA, 151_665])
@pytest.mark.parametrize(("mode", "num_kept"), [("coupled", 0), ("rejection-64", 64)])
@pytest.mark.parametrize("num_tokens", [1, 3, 8, 15, 24])
def test_frames_cost_what_is_said(vocabulary_size, mode, num_kept, num_tokens):
    """To the bytes that fill up packed ids and to MessagePack's longer headers."""
    said = payload(mode, vocabulary_size)
    frame = draft(num_tokens, vocabulary_size, num_kept, np.random.default_rng(1))
    really = 8 * len(encode(frame)) + TRANSPORT_BITS
    assert 0 <= really - (num_tokens * said.bits_per_token + said.bits_per_draft) < 8 * 3
    empty = draft(0, vocabulary_size, 0, np.random.default_rng(1))
    assert said.bits_per_draft == 8 * len(encode(empty)) + TRANSPORT_BITS


def test_more_kept_tokens_and_larger_vocabularies_cost_more():
    by_kept = [payload(f"rejection-{n}", LLAMA).bits_per_token for n in (1, 8, 64, 1024)]
    assert by_kept == sorted(by_kept)
    assert by_kept[-1] == 31_818  # the paper's 31,744, levels and headers
    for mode in ("coupled", "rejection-16", "ids", "top-16", "full"):
        assert payload(mode, LLAMA).bits_per_token < payload(mode, QWEN).bits_per_token
    assert payload("coupled", LLAMA).bits_per_token == 15 + 3  # an id and a level
    assert payload("coupled", 256).bits_per_token == 8 + 3


@pytest.mark.parametrize(
    ("mode", "size", "said"),
    [
        ("greedy", LLAMA, 'must be "coupled"'),
        ("top", LLAMA, "must be"),
        ("top-", LLAMA, "must be"),
        ("top--1", LLAMA, "must be"),
        ("top-1.5", LLAMA, "must be"),
        ("top-0", LLAMA, "keep 1 to 32000"),
        ("rejection-32001", LLAMA, "keep 1 to 32000"),
        ("rejection-65537", QWEN, "keep 1 to 65536"),
        ("ids", 1, "vocabulary_size = 1"),
        ("ids", 1 << 30, "vocabulary_size"),
    ],
)
def test_what_is_no_payload(mode, size, said):
    with pytest.raises(BadInput, match=said):
        payload(mode, size)
