"""The one protocol behind which every language model lives: a pool of sequences over one model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from multispin.types import Logits, TokenIds


@dataclass(frozen=True)
class Vocabulary:
    """Token ids, their bytes, and the ids with a meaning of their own.

    ``size`` leaves out padding ids at the end, in which model sizes of one family differ; logits
    are cut to it. ``pieces`` is the concatenation of all token byte strings, ``offsets``
    [size + 1] their borders (a special token such as ``<|im_end|>`` decodes to no bytes).
    """

    pieces: bytes = field(repr=False)
    offsets: npt.NDArray[np.int64] = field(repr=False)
    end_ids: frozenset[int]  # any of these ends a text
    bos_id: int | None = None
    chat_template: str | None = field(default=None, repr=False)  # Jinja, from the GGUF
    special_pieces: dict[int, str] = field(default_factory=dict, repr=False)
    fingerprint: str = ""

    @property
    def size(self) -> int:
        return len(self.offsets) - 1

    def decode(self, ids: Sequence[int] | TokenIds) -> bytes:
        """The bytes that these tokens stand for; may end inside a UTF-8 character."""
        offsets, pieces = self.offsets, self.pieces
        return b"".join(pieces[offsets[i] : offsets[i + 1]] for i in ids)

    def name(self, token: int) -> bytes:
        """The bytes of a token; of a special one without any, what it is called."""
        return self.decode([token]) or self.special_pieces.get(token, "").encode()


def fingerprint(
    pieces: bytes,
    offsets: npt.NDArray[np.int64],
    special_pieces: Mapping[int, str],
    end_ids: Iterable[int],
) -> str:
    """Hash of the token byte strings and of the tokens with a meaning of their own: 16 hex digits.

    Two models can draft for one another if and only if these agree. Whether a text begins with a
    BOS token is left out: that is the server's business, the ids mean the same.
    """
    digest = hashlib.blake2b(digest_size=8)
    digest.update(np.ascontiguousarray(offsets, "<i8").tobytes())
    digest.update(pieces)
    for token in sorted(special_pieces):
        digest.update(f"{token}={special_pieces[token]};".encode())
    digest.update(f"end={sorted(end_ids)}".encode())
    return digest.hexdigest()


@dataclass
class Rows:
    """One forward pass: row i feeds ``token[i]`` of sequence ``seq[i]`` at ``position[i]``.

    Rows of one sequence are consecutive, in order of position, and begin at its present length.
    """

    seq: npt.NDArray[np.int32]  # [rows]
    position: npt.NDArray[np.int32]  # [rows]
    token: TokenIds  # [rows]
    wants_logits: npt.NDArray[np.bool_]  # [rows]


class LanguageModel(Protocol):
    """A loaded model with ``num_sequences`` independent caches of ``context_length`` tokens."""

    name: str
    vocabulary: Vocabulary
    num_sequences: int
    context_length: int

    def tokenize(self, text: str, *, parse_special: bool = False) -> TokenIds:
        """Token ids of a text; with ``parse_special``, '<|im_start|>' and the like become ids."""
        ...

    def forward(self, rows: Rows) -> Logits:
        """Run the batch; logits [rows that want them, vocabulary.size], in row order.

        The array is a view, writable, and valid until the next call.
        """
        ...

    def truncate(self, seq: int, length: int) -> None:
        """Forget all but the first ``length`` tokens of a sequence."""
        ...

    def fork(self, src: int, dst: int, length: int) -> None:
        """Make ``dst`` a copy of the first ``length`` tokens of ``src``; what it held is freed."""
        ...

    def free(self, seq: int) -> None:
        """Empty a sequence."""
        ...

    def close(self) -> None: ...
