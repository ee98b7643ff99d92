"""Replay: a record in the place of a drafter, or of the target's own choice of tokens.

A text is found by the token ids of its prompt, its place by the tokens after them. Nothing else is
remembered from call to call, so that roll-backs, repetitions and crashes need no care.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from multispin.core.drafter import NOTHING, Drafted, Sampler
from multispin.errors import BadInput
from multispin.lm.base import Vocabulary
from multispin.lm.prefix import num_common
from multispin.lm.record import NO_TOKEN, Record, RecordedText
from multispin.types import SamplingParams, TokenIds


class Paths:
    """The recorded paths, and what an engine's sequences have been fed. Tokens are int32 bytes."""

    def __init__(self, record: Record, num_sequences: int) -> None:
        self._paths = {text.prompt_ids: text.path for text in record.texts}
        self._fed = [bytearray() for _ in range(num_sequences)]

    def feed(self, seq: int, start: int, tokens: bytes) -> None:
        """The sequence holds ``start`` tokens, then these."""
        self._fed[seq][4 * start :] = tokens

    def copy(self, source: int, target: int, length: int) -> None:
        self._fed[target] = self._fed[source][: 4 * length]

    def ahead(self, seq: int, num_prompt: int, num_kept: int, params: SamplingParams) -> bytes:
        """The path from token ``num_kept`` of a sequence on; empty where the record holds none.

        It holds texts at temperature 0, as far as they were recorded.
        """
        if params.temperature > 0 or params.has_penalties or params.logit_bias:
            return b""
        fed = self._fed[seq]
        path = self._paths.get(bytes(fed[: 4 * num_prompt]), b"")
        written = fed[4 * num_prompt : 4 * num_kept]
        return path[len(written) :] if path.startswith(written) else b""


def follow(draft: bytes, ahead: bytes) -> tuple[int, int | None]:
    """How many tokens of a draft are the path's, and the path's next one: None at its end."""
    equal = min(len(draft), len(ahead))
    if draft[:equal] != ahead[:equal]:
        equal = 0
        while draft[equal : equal + 4] == ahead[equal : equal + 4]:
            equal += 4
    following = ahead[equal : equal + 4]
    return equal // 4, int.from_bytes(following, "little") if following else None


class _Text(NamedTuple):
    path: TokenIds  # [N]
    drafts: TokenIds  # [N, D]
    confidences: npt.NDArray[np.float32]  # [N, D]


class ReplayDrafter:
    """Proposes what the recorded drafter proposed there, at once.

    Where ``tokens`` have left the path, what was drafted at the last position on it goes on,
    whatever the tokens behind that position are: none of them will be accepted.
    """

    num_sequences = 1 << 16
    is_light = True

    def __init__(self, record: Record) -> None:
        self.name = record.draft
        self.vocabulary: Vocabulary | None = record.vocabulary()
        self._texts = {text.prompt_ids: _arrays(text, record.depth) for text in record.texts}

    def draft(self, seq: int, tokens: TokenIds, length: int, sampler: Sampler) -> Drafted:
        if sampler.params.temperature > 0:
            raise BadInput(
                "temperature", sampler.params.temperature, "a record is replayed at 0 only"
            )
        text = self._texts.get(tokens[: sampler.num_prompt].astype("<i4").tobytes())
        if text is None:
            raise BadInput(
                "prompt",
                f"{sampler.num_prompt} tokens",
                "is not in the record: take one of its prompts, or record this one",
            )
        written = tokens[sampler.num_prompt :]
        stands = num_common(written, text.path)
        if stands == len(text.path):
            return NOTHING
        ahead = len(written) - stands
        ids = text.drafts[stands, ahead : ahead + max(length, 0)]
        num_drafted = num_common(ids != NO_TOKEN, np.ones(len(ids), np.bool_))
        return Drafted(ids[:num_drafted], [], text.confidences[stands, ahead : ahead + num_drafted])

    def learn(self, seq: int, committed: TokenIds) -> None:
        pass

    def free(self, seq: int) -> None:
        pass


def _arrays(text: RecordedText, depth: int) -> _Text:
    return _Text(
        np.frombuffer(text.path, np.dtype("<i4")),
        np.frombuffer(text.drafts, np.dtype("<i4")).reshape(-1, depth),
        np.frombuffer(text.confidences, np.dtype("<f2")).astype(np.float32).reshape(-1, depth),
    )
