"""A record: what a target wrote for some prompts, and what a drafter proposed all along the way.

One MessagePack file. Arrays are the bytes of little-endian numbers. N is the number of tokens of a
text's path, D the record's depth. docs/measuring.md says what records are for.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np

from multispin.errors import BadInput
from multispin.lm.base import Vocabulary

FORMAT = "multispin record 1"
NO_TOKEN = -1  # in ``drafts``, behind a continuation that ended


class RecordedText(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The *path* is the target's own text at temperature 0, its end token included if it came.

    Row i of ``drafts`` is the drafter's greedy continuation of the prompt and ``path[:i]``;
    ``confidences`` are its probabilities of these tokens.
    """

    prompt: str  # as the target's tokenizer read it
    prompt_ids: bytes  # int32, the BOS token included
    path: bytes  # int32 [N]
    drafts: bytes  # int32 [N, D]
    confidences: bytes  # float16 [N, D]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The texts, and the target's vocabulary: a server can run from a record alone."""

    format: str
    target: str
    draft: str
    fingerprint: str
    pieces: bytes
    offsets: bytes  # int64 [vocabulary size + 1]
    end_ids: list[int]
    bos_id: int | None
    chat_template: str | None
    special_pieces: dict[int, str]
    depth: int  # D
    draft_s_per_token: float  # of the drafter where it was recorded, alone in a batch
    texts: list[RecordedText]

    def vocabulary(self) -> Vocabulary:
        return Vocabulary(
            pieces=self.pieces,
            offsets=np.frombuffer(self.offsets, np.dtype("<i8")),
            end_ids=frozenset(self.end_ids),
            bos_id=self.bos_id,
            chat_template=self.chat_template,
            special_pieces=self.special_pieces,
            fingerprint=self.fingerprint,
        )

    @property
    def num_tokens(self) -> int:
        return sum(len(text.path) // 4 for text in self.texts)

    @property
    def agreement(self) -> float:
        """Share of the path's tokens that the drafter foretold from the path before them."""
        num_equal = 0
        for text in self.texts:
            path = np.frombuffer(text.path, np.dtype("<i4"))
            drafts = np.frombuffer(text.drafts, np.dtype("<i4")).reshape(-1, self.depth)
            num_equal += int(np.count_nonzero(drafts[:, 0] == path))
        return num_equal / max(1, self.num_tokens)


def read_record(path: Path | str, field: str) -> Record:
    """The record in a file; BadInput, naming ``field``, for anything else."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise BadInput(field, path, f"cannot be read: {error.strerror}") from None
    try:
        record = msgspec.msgpack.decode(data, type=Record)
    except msgspec.DecodeError:
        record = None
    if record is None or record.format != FORMAT or not _is_whole(record):
        raise BadInput(
            field, path, "is no record of this version; write it with `multispin record`"
        )
    return record


def write_record(path: Path, record: Record) -> None:
    """All of it or nothing: the file takes its name when it is complete."""
    partial = path.with_name(f".{path.name}.part")
    try:
        partial.write_bytes(msgspec.msgpack.encode(record))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)  # a full disk leaves a piece of it


def _is_whole(record: Record) -> bool:
    """Whether the arrays have their shapes, and the tokens are the vocabulary's."""
    size = len(record.offsets) // 8 - 1
    if size < 1 or len(record.offsets) % 8 or record.depth < 1:
        return False
    for text in record.texts:
        num_tokens = len(text.path) // 4
        if not (
            num_tokens > 0
            and len(text.path) == 4 * num_tokens
            and len(text.prompt_ids) % 4 == 0 < len(text.prompt_ids)
            and len(text.drafts) == 4 * num_tokens * record.depth
            and len(text.confidences) == 2 * num_tokens * record.depth
        ):
            return False
        ids = np.frombuffer(text.prompt_ids + text.path, np.dtype("<i4"))
        drafts = np.frombuffer(text.drafts, np.dtype("<i4"))
        if ids.min() < 0 or max(ids.max(), drafts.max()) >= size or drafts.min() < NO_TOKEN:
            return False
    return True
