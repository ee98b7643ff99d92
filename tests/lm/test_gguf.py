"""A damaged or hostile GGUF file is refused in plain words, and never reaches llama.cpp."""

from __future__ import annotations

import ctypes
import os
import random
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lm_tiny_gguf import PIECES, TOKENIZER, gguf, tiny_llama, tiny_mamba

from multispin.errors import BadInput
from multispin.lm.gguf import BLOCKS, NO_WEIGHTS, check_gguf
from multispin.lm.llama_library import load_library

LLAMA = tiny_llama(causal=True)
HEAD_BYTES = LLAMA.rindex(b"blk.0.ffn_down.weight") + 53
HUGE = (0x80, 0xFF, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 63) - 1, (1 << 64) - 1)
# Loads what it is told of, line by line, and uses it. An abort of llama.cpp ends it.
CHILD = """
import sys
import numpy as np
from multispin.errors import MultispinError
from multispin.lm.base import Rows
from multispin.lm.llama import LlamaModel
for line in sys.stdin:
    try:
        model = LlamaModel(
            path=line.strip(), name="it", num_sequences=1, context_length=16, threads=1
        )
        model.tokenize("Hello, 世界")
        four = np.arange(4, dtype=np.int32)
        model.forward(Rows(four * 0, four, four + 5, four > 2))
        model.close()
    except MultispinError:
        pass
"""


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def with_value(key: str, value: object) -> bytes:
    """The smallest file that passes, but for this."""
    metadata: dict[str, object] = {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.context_length": 64,
        "llama.embedding_length": 32,
    }
    return gguf(metadata | TOKENIZER | {key: value}, {"t": (32, 4)})


@pytest.mark.parametrize("data", [LLAMA, tiny_mamba(), with_value("llama.expert_count", 0)])
def test_sound_files_pass(tmp_path: Path, data: bytes) -> None:
    check_gguf(write(tmp_path / "it.gguf", data))


@pytest.mark.models
def test_a_real_model_passes(small_model_path: Path) -> None:
    check_gguf(small_model_path)


def test_block_sizes_are_those_of_llama_cpp() -> None:
    c = load_library().c
    c.ggml_blck_size.argtypes = c.ggml_type_size.argtypes = [ctypes.c_int]
    c.ggml_blck_size.restype, c.ggml_type_size.restype = ctypes.c_int64, ctypes.c_size_t
    known = range(max(BLOCKS) + 1)
    theirs = {type_: (c.ggml_blck_size(type_), c.ggml_type_size(type_)) for type_ in known}
    stored = {type_: block for type_, block in theirs.items() if block[0]}
    assert {type_: stored[type_] for type_ in stored.keys() - {*NO_WEIGHTS}} == BLOCKS
    assert stored.keys() > {*NO_WEIGHTS}


def test_every_beginning_is_refused(tmp_path: Path) -> None:
    """However early a download ended."""
    lengths = random.Random(1).sample(range(4, len(LLAMA)), 300)
    for length in [*lengths, HEAD_BYTES, len(LLAMA) - 1]:
        with pytest.raises(BadInput, match="the file is damaged: "):
            check_gguf(write(tmp_path / "it.gguf", LLAMA[:length]))


def tensor_field(field: int, value: int) -> bytes:
    """tiny_llama, but for one of the last tensor's numbers: dimensions, shape, type, offset."""
    at = LLAMA.rindex(b"blk.0.ffn_down.weight") + len("blk.0.ffn_down.weight")
    place = [(0, "<I"), (4, "<Q"), (12, "<Q"), (20, "<I"), (24, "<Q")][field]
    data = bytearray(LLAMA)
    struct.pack_into(place[1], data, at + place[0], value)
    return bytes(data)


def head(version: int, num_tensors: int, num_values: int) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", version, num_tensors, num_values) + bytes(64)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a GGUF file"),
        (b"PK\x03\x04 and so on", "not a GGUF file"),
        (head(1, 0, 0), "version 1 instead of 2 or 3"),
        (head(3 << 24, 0, 0), "version 50331648 instead of"),  # the other byte order
        (head(3, 0, 1 << 63), r"it claims \d+ values in the 64 bytes that follow"),
        (with_value("general.architecture", 3), "general.architecture is missing or no name"),
        (with_value("general.architecture", "../x"), "general.architecture is missing or no name"),
        (with_value("general.architecture", "qwen2"), "qwen2.block_count is missing"),
        (with_value("general.alignment", 48), "general.alignment is 48"),
        (with_value("general.alignment", 0), "general.alignment is 0"),
        (with_value("llama.block_count", 0), "llama.block_count is 0, outside 1 to 512"),
        (with_value("llama.block_count", "1"), "llama.block_count is '1', outside"),
        (with_value("llama.context_length", 0xFFFFFFFF), "llama.context_length is 4294967295, out"),
        (with_value("llama.attention.head_count", [2, -1]), "head_count is -1, outside"),
        (with_value("llama.rope.freq_base", float("nan")), "llama.rope.freq_base is nan"),
        (with_value("llama.attention.layer_norm_rms_epsilon", -1e-5), "outside 0 to 1"),
        (with_value("split.count", 1 << 20), "it claims 1048576 parts"),
        (with_value("tokenizer.ggml.tokens", "a b c"), "tokenizer.ggml.tokens is no list"),
        (with_value("tokenizer.ggml.tokens", PIECES[:-1]), "259 entries in .*token_type, not 258"),
        (with_value("tokenizer.ggml.tokens", ["x", *PIECES[:-1]]), "no token stands for the byte"),
        (with_value("tokenizer.ggml.token_type", PIECES), "no array of 32-bit numbers"),
        (with_value("tokenizer.ggml.scores", 7), "tokenizer.ggml.scores is no array"),
        (LLAMA.replace(b"attn_q", b"attn_k"), "two tensors of one name"),
        (LLAMA.replace(b"llama.context_length", b"general.architecture"), "'general.architecture'"),
        (tensor_field(0, 5), "ffn_down.weight has 5 dimensions"),
        (tensor_field(1, 1 << 62), "ffn_down.weight ends at"),
        (tensor_field(3, 12), "rows of 64, which is no multiple of 256"),
        (tensor_field(3, 9), "ffn_down.weight is of type 9, which no weights are"),
        (tensor_field(4, 31), "begins at 31, which is no multiple of 32"),
        (tensor_field(4, 1 << 63), "ends at 9223372036854"),
    ],
)
def test_refused_in_plain_words(tmp_path: Path, data: bytes, words: str) -> None:
    path = write(tmp_path / "it.gguf", data)
    with pytest.raises(BadInput, match=words) as raised:
        check_gguf(path)
    assert str(raised.value).startswith(f"model = {path}: ")


def test_the_other_parts_of_a_model_are_checked_too(tmp_path: Path) -> None:
    first = write(tmp_path / "it-00001-of-00002.gguf", with_value("split.count", 2))
    second = tmp_path / "it-00002-of-00002.gguf"
    write(second, gguf({"split.count": 2, "split.no": 1}, {"u": (8,)}))
    check_gguf(first)
    write(second, second.read_bytes()[:-1])
    with pytest.raises(BadInput, match=re.escape(f"{second}: the file is damaged: u ends at")):
        check_gguf(first)


def mutants(rng: random.Random) -> Iterator[bytes]:
    while True:
        data = bytearray(LLAMA)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(4, HEAD_BYTES)
            size = rng.choice((1, 1, 4, 8))
            value = rng.choice((0, 1, 2, 9, rng.randrange(256), *HUGE)) & ((1 << 8 * size) - 1)
            data[at : at + size] = value.to_bytes(size, "little")
        yield bytes(data)


def test_mutants_are_refused_or_harmless(tmp_path: Path) -> None:
    """BadInput and nothing else; and what passes does not bring llama.cpp down.

    20,000 of each kind were tried so; this is the short form.
    """
    rng, stream = random.Random(7), mutants(random.Random(8))
    passed = []
    for number in range(1500):
        path = write(tmp_path / f"{number}.gguf", next(stream))
        try:
            check_gguf(path)
        except BadInput:
            path.unlink()
        else:
            passed.append(path)
    assert 100 < len(passed) < 1000
    tried = rng.sample(passed, 60)
    child = subprocess.run(
        [sys.executable, "-c", CHILD],
        input="\n".join(map(str, tried)),
        env=os.environ | {"GGML_NO_BACKTRACE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert child.returncode == 0, child.stderr
