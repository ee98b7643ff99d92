"""A GGUF file's head, looked through before llama.cpp sees the file.

llama.cpp is written in C++ and believes much of what a file says. Here every count, length and
offset is compared with the file's size before it is used, and what the loader relies on is there
and of the right kind. Format: docs/gguf.md of the ggml project; all numbers are little-endian.
"""

from __future__ import annotations

import math
import re
import struct
from os import SEEK_CUR
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

from multispin.errors import BadInput

VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
MAX_NAME_BYTES = 63  # of a tensor
MAX_STRING_BYTES = 1 << 24  # the longest in use are chat templates
MAX_ALIGNMENT = 1 << 20
MAX_PARTS = 1 << 10  # of a model in several files

STRING, ARRAY = 8, 9
# The numbers' types: how struct reads them.
NUMBERS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
INT32S, FLOAT32S = (4, 5), (6,)

# Types of tensors that llama.cpp computes with: elements and bytes of a block. Of others, which a
# newer one may know, only the place is checked. Those of NO_WEIGHTS (Q8_1, Q8_K, INT8, …) it knows,
# and aborts when they are a layer's weights.
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 16: (256, 66),
    17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 26: (1, 4), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66),
    39: (32, 17), 40: (64, 36), 41: (128, 18), 42: (64, 18),
}  # fmt: skip
NO_WEIGHTS = (9, 15, 24, 25, 27, 28)

# What an architecture says of itself, and the least and most of each that we let through.
BOUNDS = {
    "block_count": (1, 512),
    "context_length": (1, (1 << 31) - 1),
    "embedding_length": (1, 1 << 20),
    "feed_forward_length": (0, 1 << 24),
    "attention.head_count": (0, 1 << 16),
    "attention.head_count_kv": (0, 1 << 16),
    "attention.key_length": (0, 1 << 16),
    "attention.value_length": (0, 1 << 16),
    "attention.layer_norm_epsilon": (0, 1),
    "attention.layer_norm_rms_epsilon": (0, 1),
    "rope.dimension_count": (0, 1 << 16),
    "expert_count": (0, 1 << 16),
    "expert_used_count": (0, 1 << 16),
    "vocab_size": (0, 1 << 24),
}
NECESSARY = ("block_count", "context_length", "embedding_length")


class Array(NamedTuple):
    """An array of the metadata; with its numbers, if they are few, or its short strings."""

    type: int
    length: int
    numbers: tuple[float, ...] = ()
    strings: frozenset[bytes] = frozenset()


Value = float | str | Array
Metadata = dict[str, Value]
SHORT = 1 << 12  # one number a layer
PIECE_BYTES = len("<0x00>")


def check_gguf(path: Path) -> None:
    """Raise BadInput unless the file, and its other parts if it has any, are sound."""
    num_parts = _check_file(path, is_first=True).get("split.count", 1)
    if not isinstance(num_parts, int) or num_parts > MAX_PARTS:
        raise _damaged(path, f"it claims {num_parts} parts")
    for part in range(2, num_parts + 1):
        name = re.sub(r"-\d{5}-of-\d{5}$", f"-{part:05}-of-{num_parts:05}", path.stem)
        _check_file(path.with_stem(name), is_first=False)


def _check_file(path: Path, *, is_first: bool) -> Metadata:
    try:
        with path.open("rb") as file:
            return _Head(path, file, path.stat().st_size).check(is_first)
    except OSError as error:
        raise BadInput("model", path, f"{error.strerror}; give the path of a .gguf file") from error


def _damaged(path: Path, what: str) -> BadInput:
    return BadInput("model", path, f"the file is damaged: {what}; get it again")


class _Head:
    """Reads on; whatever does not fit the rest of the file is refused before it is read."""

    def __init__(self, path: Path, file: BinaryIO, num_bytes: int) -> None:
        self._path = path
        self._file = file
        self._num_left = num_bytes
        self._num_bytes = num_bytes

    def check(self, is_first: bool) -> Metadata:
        if self._num_left < 4 or self._take(4) != b"GGUF":
            raise BadInput("model", self._path, "not a GGUF file; give the path of a .gguf file")
        (version,) = self._numbers("I")
        if version not in VERSIONS:
            self._fail(f"version {version} instead of {' or '.join(map(str, VERSIONS))}")
        num_tensors, num_values = self._numbers("QQ")
        metadata = self._metadata(self._count(num_values, 13, "values"))
        if is_first:  # the other parts of a model carry little but tensors
            self._check_model(metadata)
        self._check_tensors(self._count(num_tensors, 24, "tensors"), self._alignment(metadata))
        return metadata

    # --- metadata --------------------------------------------------------------------------------

    def _metadata(self, num_values: int) -> Metadata:
        metadata: Metadata = {}
        for _ in range(num_values):
            key = self._string()
            if key in metadata or not key:
                self._fail(f"the key {key!r} twice" if key else "a key without a name")
            metadata[key] = self._value(key)
        return metadata

    def _value(self, key: str) -> Value:
        (type_,) = self._numbers("I")
        if type_ == STRING:
            return self._string()
        if type_ == ARRAY:
            return self._array(key)
        if type_ not in NUMBERS:
            self._fail(f"{key} is of the unknown type {type_}")
        (number,) = self._numbers(NUMBERS[type_])
        return number

    def _array(self, key: str) -> Array:
        type_, length = self._numbers("IQ")
        if type_ == STRING:
            count = self._count(length, 8, f"strings in {key}")
            strings = (self._take(self._string_length()) for _ in range(count))
            return Array(type_, length, (), frozenset(s for s in strings if len(s) <= PIECE_BYTES))
        if type_ not in NUMBERS:
            self._fail(f"{key} is an array of the unknown type {type_}")
        size = struct.calcsize(NUMBERS[type_])
        self._count(length, size, f"numbers in {key}")
        if length > SHORT:
            self._skip(length * size)
            return Array(type_, length)
        return Array(type_, length, self._numbers(NUMBERS[type_] * length))

    def _alignment(self, metadata: Metadata) -> int:
        alignment = metadata.get("general.alignment", 32)
        if (
            not isinstance(alignment, int)
            or not 0 < alignment <= MAX_ALIGNMENT
            or alignment & (alignment - 1)
        ):
            self._fail(f"general.alignment is {alignment}")
        return alignment

    def _check_model(self, metadata: Metadata) -> None:
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str) or not re.fullmatch(
            r"[a-z0-9_.-]{1,64}", architecture
        ):
            self._fail("general.architecture is missing or no name")
        for name in NECESSARY:
            if f"{architecture}.{name}" not in metadata:
                self._fail(f"{architecture}.{name} is missing")
        for key, value in metadata.items():
            if key.startswith(f"{architecture}."):
                self._check_number(key, BOUNDS.get(key.removeprefix(f"{architecture}.")), value)
        self._check_vocabulary(metadata)

    def _check_number(self, key: str, bounds: tuple[int, int] | None, value: Value) -> None:
        numbers = value.numbers if isinstance(value, Array) else (value,)
        for number in numbers:
            if isinstance(number, float) and not math.isfinite(number):
                self._fail(f"{key} is {number}")
            if bounds and not (
                isinstance(number, int | float) and bounds[0] <= number <= bounds[1]
            ):
                self._fail(f"{key} is {number!r}, outside {bounds[0]} to {bounds[1]}")

    def _check_vocabulary(self, metadata: Metadata) -> None:
        """A score and a type for each token: llama.cpp reads them by the token's number."""
        tokens = metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, Array) or tokens.type != STRING or tokens.length == 0:
            self._fail("tokenizer.ggml.tokens is no list of tokens")
        for name, types in (("scores", (*FLOAT32S, *INT32S)), ("token_type", INT32S)):
            value = metadata.get(f"tokenizer.ggml.{name}")
            if value is None:
                continue
            if not isinstance(value, Array) or value.type not in types:
                self._fail(f"tokenizer.ggml.{name} is no array of 32-bit numbers")
            if value.length != tokens.length:
                self._fail(f"{value.length} entries in tokenizer.ggml.{name}, not {tokens.length}")
        if metadata.get("tokenizer.ggml.model") == "llama":  # such a one aborts without them
            for byte in range(256):
                if not {b"<0x%02X>" % byte, bytes((byte,))} & tokens.strings:
                    self._fail(f"no token stands for the byte {byte:#04x}")

    # --- tensors ---------------------------------------------------------------------------------

    def _check_tensors(self, num_tensors: int, alignment: int) -> None:
        ends = dict(self._tensor(alignment) for _ in range(num_tensors))
        if len(ends) < num_tensors:
            self._fail("two tensors of one name")
        begin = -(-(self._num_bytes - self._num_left) // alignment) * alignment
        for name, end in ends.items():
            if begin + end > self._num_bytes:
                self._fail(f"{name} ends at {begin + end}, beyond the file's {self._num_bytes}")

    def _tensor(self, alignment: int) -> tuple[str, int]:
        """Its name, and where its last byte is, from the begin of the data."""
        name = self._string(MAX_NAME_BYTES)
        (num_dimensions,) = self._numbers("I")
        if num_dimensions > MAX_DIMENSIONS:
            self._fail(f"{name} has {num_dimensions} dimensions")
        shape = self._numbers("Q" * num_dimensions)
        type_, offset = self._numbers("IQ")
        if offset % alignment:
            self._fail(f"{name} begins at {offset}, which is no multiple of {alignment}")
        if type_ in NO_WEIGHTS:
            self._fail(f"{name} is of type {type_}, which no weights are")
        block, size = BLOCKS.get(type_, (1, 0))
        if (shape[0] if shape else 1) % block:
            self._fail(f"{name} has rows of {shape[0]}, which is no multiple of {block}")
        return name, offset + math.prod(shape) // block * size

    # --- bytes -----------------------------------------------------------------------------------

    def _numbers(self, format_: str) -> tuple[int, ...]:
        return struct.unpack("<" + format_, self._take(struct.calcsize("<" + format_)))

    def _count(self, count: int, least_size: int, of_what: str) -> int:
        if count > self._num_left // least_size:
            self._fail(f"it claims {count} {of_what} in the {self._num_left} bytes that follow")
        return count

    def _string(self, most: int = MAX_STRING_BYTES) -> str:
        return self._take(self._string_length(most)).decode(errors="replace")

    def _string_length(self, most: int = MAX_STRING_BYTES) -> int:
        (length,) = self._numbers("Q")
        if length > most:
            self._fail(f"it claims a string of {length} bytes")
        return length

    def _take(self, length: int) -> bytes:
        self._pass(length)
        data = self._file.read(length)
        if len(data) < length:
            self._fail("it shrinks while it is read")
        return data

    def _skip(self, length: int) -> None:
        self._pass(length)
        self._file.seek(length, SEEK_CUR)

    def _pass(self, length: int) -> None:
        if length > self._num_left:
            self._fail(f"it ends {length - self._num_left} bytes too early")
        self._num_left -= length

    def _fail(self, what: str) -> NoReturn:
        raise _damaged(self._path, what)
