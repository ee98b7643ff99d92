"""Records: the target's path for each prompt, and the drafter's proposals from every step of it.

The target writes several texts at a time, without drafts. The drafter then reads each path in
passes of many rows: the row of every position says what it would draft there. Where that is the
path's own token, its continuation is the next position's, one token later; only where it is not
must the continuation be drafted, and all of these of one text are drafted in one batch, from copies
of the path's cache.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from multispin.bench.verification import Tell, fill
from multispin.core.drafter import confidence
from multispin.core.engine import Batch, Engine, Work, emptied
from multispin.errors import BadInput
from multispin.lm.base import LanguageModel, Rows
from multispin.lm.record import FORMAT, NO_TOKEN, Record, RecordedText
from multispin.types import SamplingParams, TokenIds

DEPTH = 32  # tokens of each continuation: as far as a device drafts at most
MAX_ROWS = 64  # of one pass of the drafter
NUM_TIMED = 16  # drafted tokens of the first texts, one at a time, for the drafter's own speed
NUM_TIMED_TEXTS = 4


class Prompt(NamedTuple):
    """A prompt as the target's tokenizer read it, and what it made of it."""

    text: str
    ids: TokenIds


class Drafts(NamedTuple):
    """Of one text: the drafter's continuation at each of N positions, and its probabilities."""

    ids: TokenIds  # [N, D], NO_TOKEN behind an end token
    confidences: npt.NDArray[np.float32]  # [N, D]


def record_texts(
    engine: Engine,
    model: LanguageModel,
    draft: str,
    prompts: Sequence[Prompt],
    max_tokens: int,
    tell: Tell,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Record:
    """The record of a target and a drafter that share a vocabulary. BadInput: prompts too long."""
    prompts = _distinct(prompts, tell)
    _check_lengths(engine, model, prompts, max_tokens)
    paths = write_paths(engine, [prompt.ids for prompt in prompts], max_tokens, tell)
    reader = PathReader(model, frozenset(engine.info.end_ids))
    texts, seconds = [], []
    for number, (prompt, path) in enumerate(zip(prompts, paths, strict=True), 1):
        drafts = reader.drafts(prompt.ids, path)
        if number <= NUM_TIMED_TEXTS:
            seconds += reader.time_tokens(prompt.ids, path, clock)
        texts.append(_recorded(prompt, path, drafts))
        agreement = np.mean(drafts.ids[:, 0] == path)
        tell(f"drafts of text {number} of {len(prompts)}: first token right {agreement:.3f}")
    info = engine.info
    return Record(
        format=FORMAT,
        target=info.target,
        draft=draft,
        fingerprint=info.fingerprint,
        pieces=info.pieces,
        offsets=info.offsets,
        end_ids=info.end_ids,
        bos_id=info.bos_id,
        chat_template=info.chat_template,
        special_pieces=info.special_pieces,
        depth=DEPTH,
        draft_s_per_token=statistics.median(seconds),
        texts=texts,
    )


def write_paths(
    engine: Engine, prompts: Sequence[TokenIds], max_tokens: int, tell: Tell
) -> list[TokenIds]:
    """The target's own texts at temperature 0, as many at a time as it has sequences."""
    texts = [prompt.tolist() for prompt in prompts]
    waiting = deque(range(len(prompts)))
    free = list(range(engine.info.num_sequences))
    writing: dict[int, int] = {}  # the number of the prompt, by sequence
    while waiting or writing:
        while waiting and free:
            seq, number = free.pop(), waiting.popleft()
            fill(engine, seq, prompts[number][:-1])
            writing[seq] = number
        works = [_next_token(s, texts[n], len(prompts[n])) for s, n in writing.items()]
        outcomes = engine.step(Batch(works)).outcomes
        for (seq, number), outcome in zip(list(writing.items()), outcomes, strict=True):
            texts[number].append(outcome.token)
            num_written = len(texts[number]) - len(prompts[number])
            if num_written == max_tokens or outcome.token in engine.info.end_ids:
                engine.step(Batch([], [emptied(seq)]))
                del writing[seq]
                free.append(seq)
                num_done = len(prompts) - len(waiting) - len(writing)
                tell(f"path {num_done} of {len(prompts)}: {num_written} tokens")
    return [
        np.array(text[len(prompt) :], np.int32) for text, prompt in zip(texts, prompts, strict=True)
    ]


class PathReader:
    """A drafting model that reads along paths. Sequence 0 holds the path, the others branch off."""

    def __init__(self, model: LanguageModel, end_ids: frozenset[int]) -> None:
        self._model = model
        self._end_ids = end_ids

    def drafts(self, prompt: TokenIds, path: TokenIds) -> Drafts:
        """What the model drafts at each position of the path, `DEPTH` tokens far."""
        ids = np.full((len(path), DEPTH), NO_TOKEN, np.int32)
        confidences = np.zeros((len(path), DEPTH), np.float32)
        ids[:, 0], confidences[:, 0] = self._first_tokens(prompt, path)
        leaves = ids[:, 0] != path
        leaves[-1] = True  # nothing is recorded behind the path's end
        branches = np.flatnonzero(leaves)
        most = self._model.num_sequences - 1
        for begin in range(0, len(branches), most):
            self._branch_off(len(prompt), branches[begin : begin + most], ids, confidences)
        for i in np.flatnonzero(~leaves)[::-1].tolist():
            ids[i, 1:] = ids[i + 1, :-1]
            confidences[i, 1:] = confidences[i + 1, :-1]
        return Drafts(ids, confidences)

    def time_tokens(
        self, prompt: TokenIds, path: TokenIds, clock: Callable[[], float]
    ) -> list[float]:
        """Seconds for each of the first tokens of the path, read one by one as a device drafts."""
        self._model.fork(0, 1, len(prompt) - 1)
        seconds = []
        for position, token in enumerate([prompt[-1], *path[: NUM_TIMED - 1]], len(prompt) - 1):
            began = clock()
            self._read({1: position}, np.array([token], np.int32))
            seconds.append(clock() - began)
        return seconds

    def _first_tokens(self, prompt: TokenIds, path: TokenIds) -> tuple[list[int], list[float]]:
        """Read prompt and path; what would be drafted at each position, and how surely."""
        self._model.free(0)
        tokens = np.concatenate([prompt, path[:-1]])
        ids: list[int] = []
        confidences: list[float] = []
        for start in range(0, len(tokens), MAX_ROWS):
            chunk = tokens[start : start + MAX_ROWS]
            position = np.arange(start, start + len(chunk), dtype=np.int32)
            rows = Rows(position * 0, position, chunk, position >= len(prompt) - 1)
            for row in self._model.forward(rows):
                ids.append(int(row.argmax()))
                confidences.append(confidence(row, ids[-1]))
        return ids, confidences

    def _branch_off(
        self,
        num_prompt: int,
        branches: npt.NDArray[np.intp],
        ids: TokenIds,
        confidences: npt.NDArray[np.float32],
    ) -> None:
        """Draft on behind the first tokens of these rows, all of them in step."""
        alive = {}  # position on the path, by sequence
        for seq, i in enumerate(branches.tolist(), 1):
            if int(ids[i, 0]) not in self._end_ids:
                self._model.fork(0, seq, num_prompt + i)
                alive[seq] = i
        for depth in range(1, DEPTH):
            if not alive:
                return
            positions = {seq: num_prompt + i + depth - 1 for seq, i in alive.items()}
            drafted = self._read(positions, ids[list(alive.values()), depth - 1])
            for (seq, i), (token, sureness) in zip(list(alive.items()), drafted, strict=True):
                ids[i, depth], confidences[i, depth] = token, sureness
                if token in self._end_ids:
                    del alive[seq]

    def _read(self, positions: dict[int, int], tokens: TokenIds) -> list[tuple[int, float]]:
        """Feed each sequence one token; what the model drafts next there, and how surely."""
        rows = Rows(
            np.array(list(positions), np.int32),
            np.array(list(positions.values()), np.int32),
            tokens,
            np.ones(len(positions), np.bool_),
        )
        drafted = []
        for row in self._model.forward(rows):
            token = int(row.argmax())
            drafted.append((token, confidence(row, token)))
        return drafted


def _next_token(seq: int, text: list[int], num_prompt: int) -> Work:
    return Work(
        seq=seq,
        start=len(text) - 1,
        tokens=np.array(text[-1:], np.dtype("<i4")).tobytes(),
        num_draft=0,
        samples=True,
        num_prompt=num_prompt,
        params=SamplingParams(),
        rule="greedy",
        seed=0,
    )


def _recorded(prompt: Prompt, path: TokenIds, drafts: Drafts) -> RecordedText:
    return RecordedText(
        prompt=prompt.text,
        prompt_ids=prompt.ids.astype("<i4").tobytes(),
        path=path.astype("<i4").tobytes(),
        drafts=drafts.ids.astype("<i4").tobytes(),
        confidences=drafts.confidences.astype("<f2").tobytes(),
    )


def _distinct(prompts: Sequence[Prompt], tell: Tell) -> list[Prompt]:
    """A text is found by its prompt: one each."""
    distinct = list({prompt.ids.tobytes(): prompt for prompt in prompts}.values())
    if len(distinct) < len(prompts):
        tell(f"{len(prompts) - len(distinct)} prompts occur twice and are recorded once")
    return distinct


def _check_lengths(
    engine: Engine, model: LanguageModel, prompts: Sequence[Prompt], max_tokens: int
) -> None:
    context_length = min(engine.info.context_length, model.context_length)
    most = context_length - max_tokens - DEPTH
    for number, prompt in enumerate(prompts, 1):
        if not 1 <= len(prompt.ids) <= most:
            raise BadInput(
                f"prompt {number}",
                f"{len(prompt.ids)} tokens",
                f"must have 1 to {most}: shorten it, lower --max-tokens or raise --ctx-size",
            )
