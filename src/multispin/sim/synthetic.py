"""Texts whose drafts are accepted as a cell's acceptance models say, for core's own replay.

Only whether two tokens are equal matters. So the target always writes RIGHT, the drafter RIGHT or
WRONG: one record of the target serves for ever, and every text brings its drafter's.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from multispin.cell import Cell
from multispin.core.cost import RecordEngine
from multispin.core.replay import ReplayDrafter
from multispin.lm.record import FORMAT, NO_TOKEN, Record, RecordedText, read_record
from multispin.sim.agreement import Agreements
from multispin.sim.seat import Text
from multispin.types import SamplingParams, TokenIds
from multispin.wire.frames import LEVEL_BITS, Open, id_bits

RIGHT, WRONG = 0, 1
FIRST_PROMPT = 2  # every device's prompt is one token of its own: free, and shared with nobody


class Drafts(NamedTuple):
    """What the drafter proposes behind each of N tokens, up to D tokens far."""

    ids: npt.NDArray[np.int32]  # [N, D]: RIGHT, WRONG or NO_TOKEN
    confidences: npt.NDArray[np.float16]  # [N, D]


class SyntheticTexts:
    """Endless texts for the K devices of a cell, of ``answer_tokens`` each."""

    def __init__(self, cell: Cell, agreements: Agreements, rng: np.random.Generator) -> None:
        self.record = _target_record(cell)
        # Of a drafted token in a frame; what is paid for it is the cell's to say.
        self.token_bits = id_bits(self.record.vocabulary().size) + LEVEL_BITS
        self._answer_tokens = cell.answer_tokens.tolist()
        self._acceptance = cell.problem.acceptance
        self._draft_length = cell.problem.max_draft_length
        self._agreements = agreements
        self._rng = rng
        paths = [m.record if m.kind == "replay" else None for m in cell.acceptance_models]
        recorded = {
            path: _recorded(read_record(path, "acceptance_model.record"), self.record.depth)
            for path in dict.fromkeys(paths)
            if path is not None
        }
        self._recorded = [None if path is None else recorded[path] for path in paths]

    def engine(self, max_rows: int) -> RecordEngine:
        """The target, with a sequence for every device."""
        return RecordEngine(
            self.record,
            num_sequences=len(self._answer_tokens),
            context_length=1 + max(self._answer_tokens),
            max_rows=max_rows,
        )

    def text(self, device: int, number: int) -> Text:
        """The ``number``-th text of a device."""
        prompt = self.record.texts[device]
        ids, confidences = self._drafts(device)
        text = msgspec.structs.replace(
            prompt,
            path=prompt.path[: 4 * len(ids)],
            drafts=ids.tobytes(),
            confidences=confidences.tobytes(),
        )
        request = Open(
            session=number,
            prompt="",
            params=SamplingParams(),
            rule="greedy",
            seed=0,
            max_tokens=len(ids),
            draft_length=self._draft_length,
        )
        drafter = ReplayDrafter(msgspec.structs.replace(self.record, texts=[text]))
        return Text(request, np.frombuffer(prompt.prompt_ids, "<i4"), drafter)

    def _drafts(self, device: int) -> Drafts:
        num_tokens, depth = self._answer_tokens[device], self.record.depth
        recorded = self._recorded[device]
        if recorded is not None:
            return _joined(recorded, num_tokens, self._rng)
        # The bits that mode rounds draws, so that both simulate the same texts.
        bits = self._agreements.agreement_path(device, num_tokens + self._draft_length)
        tokens = np.where(bits[:num_tokens], RIGHT, WRONG).astype("<i4")
        ids = _windows(tokens, depth)
        # It does not know where it errs: what it claims is its mean acceptance.
        return Drafts(ids, np.full(ids.shape, self._acceptance[device], "<f2"))


def _target_record(cell: Cell) -> Record:
    """A target that writes RIGHT for ever, and a prompt for each device."""
    num_devices, longest = len(cell.names), int(cell.answer_tokens.max())
    path = np.full(longest, RIGHT, "<i4").tobytes()
    prompts = np.arange(FIRST_PROMPT, FIRST_PROMPT + num_devices, dtype="<i4")
    return Record(
        format=FORMAT,
        target="synthetic",
        draft="synthetic",
        fingerprint="synthetic",
        pieces=b"",
        offsets=np.zeros(FIRST_PROMPT + num_devices + 1, "<i8").tobytes(),
        end_ids=[],
        bos_id=None,
        chat_template=None,
        special_pieces={},
        depth=max(1, min(cell.problem.max_draft_length, longest)),
        draft_s_per_token=0.0,
        texts=[RecordedText("", prompt.tobytes(), path, b"", b"") for prompt in prompts],
    )


def _windows(tokens: TokenIds, depth: int) -> TokenIds:
    """From each place on, the next ``depth`` tokens [N, depth]; NO_TOKEN behind the end."""
    padded = np.concatenate([tokens, np.full(depth - 1, NO_TOKEN, tokens.dtype)])
    return np.lib.stride_tricks.sliding_window_view(padded, depth)


def _recorded(record: Record, depth: int) -> list[Drafts]:
    """The texts of a real pair of models, as far as they were drafted."""
    texts = []
    for text in record.texts:
        path = np.frombuffer(text.path, "<i4")
        drafts = np.frombuffer(text.drafts, "<i4").reshape(-1, record.depth)[:, :depth]
        confidences = np.frombuffer(text.confidences, "<f2").reshape(-1, record.depth)[:, :depth]
        judged = np.where(drafts == _windows(path, drafts.shape[1]), RIGHT, WRONG)
        ids = np.where(drafts == NO_TOKEN, NO_TOKEN, judged).astype("<i4")
        missing = ((0, 0), (0, depth - ids.shape[1]))
        ids = np.pad(ids, missing, constant_values=NO_TOKEN)
        texts.append(Drafts(ids, np.pad(confidences, missing)))
    return texts


def _joined(texts: list[Drafts], num_tokens: int, rng: np.random.Generator) -> Drafts:
    """A text, drawn; another one after it where it is too short."""
    drawn = [texts[rng.integers(len(texts))]]
    while sum(len(drafts.ids) for drafts in drawn) < num_tokens:
        drawn.append(texts[rng.integers(len(texts))])
    return Drafts(
        np.concatenate([drafts.ids for drafts in drawn])[:num_tokens],
        np.concatenate([drafts.confidences for drafts in drawn])[:num_tokens],
    )
