"""Where drafter and target agree: for each device an endless row of answers, token by token.

A bit says whether the drafter, told all tokens before, would propose the target's next one. A
draft is accepted up to the first bit that is 0; the correction or bonus token takes one bit more.

    iid      every bit is 1 with probability alpha                          (arXiv 2606.04581)
    beta     alpha is drawn for each answer from the Beta distribution of the given mean and std
    markov   a chain of two states with mean alpha and lag-1 correlation c:
             P(1|0) = alpha (1 - c), P(1|1) = P(1|0) + c
    replay   the bits of a recorded pair of models, texts of the record in random order
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from multispin.cell import AcceptanceModel
from multispin.control.problem import Floats, Lengths
from multispin.errors import BadInput
from multispin.lm.record import Record, read_record

MAX_BITS = 250_000_000  # held at once, 1 GB
Bools = npt.NDArray[np.bool_]
Answer: TypeAlias = Callable[[np.random.Generator, int], Bools]  # the bits of one of n tokens


class Agreements:
    """K devices, each with its own random stream: its texts depend on nothing that it drafts.

    An answer ends with the verdict that brings it to ``answer_tokens`` or more; the next verdict is
    of a new one.
    """

    def __init__(
        self,
        models: Sequence[AcceptanceModel],
        acceptance: Floats,
        answer_tokens: Lengths,
        longest_draft: int,
        rng: np.random.Generator,
    ) -> None:
        self._answers = _answers(models, acceptance)
        self._answer_tokens = answer_tokens
        self._num_bits = answer_tokens + longest_draft  # the last draft may go beyond the answer
        most = int(self._num_bits.max())
        if len(models) * most > MAX_BITS:
            remedy = f"times {len(models)} devices is more than {MAX_BITS}; make answers shorter"
            raise BadInput("answer_tokens + max_draft_length", most, remedy)
        self._streams = rng.spawn(len(models))
        self._devices = np.arange(len(models))
        self._place = np.zeros(len(models), np.int64)  # tokens of the answer so far
        # [K, tokens]: the first place here or behind where the bit is 0
        self._next_miss = np.zeros((len(models), most), np.int32)
        self._is_begun = False

    def accepted(self, lengths: Lengths) -> Lengths:
        """How many tokens of each device's next draft [K] are accepted; 0 for length 0."""
        if not self._is_begun:
            self._begin(self._devices)
            self._is_begun = True
        ahead = self._next_miss[self._devices, self._place] - self._place
        accepted = np.minimum(lengths, ahead)
        self._place += accepted + 1
        self._begin(np.flatnonzero(self._place >= self._answer_tokens))
        return np.asarray(accepted)

    def agreement_path(self, device: int, num_tokens: int) -> Bools:
        """The bits of the device's next answer."""
        return self._answers[device](self._streams[device], num_tokens)

    def _begin(self, devices: Lengths) -> None:
        for device in devices.tolist():
            num_bits = int(self._num_bits[device])
            bits = self.agreement_path(device, num_bits)
            misses = np.where(bits, num_bits, np.arange(num_bits))
            self._next_miss[device, :num_bits] = np.minimum.accumulate(misses[::-1])[::-1]
            self._place[device] = 0


def _answers(models: Sequence[AcceptanceModel], acceptance: Floats) -> list[Answer]:
    records: dict[str, Answer] = {}
    answers: list[Answer] = []
    for model, mean in zip(models, acceptance.tolist(), strict=True):
        if model.record is not None:
            if model.record not in records:
                record = read_record(model.record, "acceptance_model.record")
                records[model.record] = partial(_replayed, recorded_bits(record))
            answers.append(records[model.record])
        elif model.correlation is not None:
            answers.append(partial(_markov, mean, model.correlation))
        elif model.std is not None:
            answers.append(partial(_beta, mean, model.std))
        else:
            answers.append(partial(_iid, mean))
    return answers


def _iid(mean: float, rng: np.random.Generator, num_tokens: int) -> Bools:
    return rng.random(num_tokens) < mean


def _beta(mean: float, std: float, rng: np.random.Generator, num_tokens: int) -> Bools:
    """a + b = mean (1 - mean) / std^2 - 1, a : b = mean : 1 - mean."""
    concentration = mean * (1 - mean) / std**2 - 1
    return _iid(rng.beta(mean * concentration, (1 - mean) * concentration), rng, num_tokens)


def _markov(mean: float, correlation: float, rng: np.random.Generator, num_tokens: int) -> Bools:
    """One uniform u a bit: below both transition probabilities it is 1, above both 0.

    In between it repeats the bit before, or turns it over if the correlation is negative.
    """
    after_0 = mean * (1 - correlation)
    low, high = sorted((after_0, after_0 + correlation))
    u = rng.random(num_tokens)
    is_set = (u < low) | (u >= high)
    bits = u < low
    is_set[:1], bits[:1] = True, u[:1] < mean
    place = np.arange(num_tokens)
    last_set = np.maximum.accumulate(np.where(is_set, place, 0))
    is_turned = (place - last_set) % 2 == 1 if correlation < 0 else False
    return np.asarray(bits[last_set] ^ is_turned)


def recorded_bits(record: Record) -> list[Bools]:
    """For each text, where the drafter's first token after ``path[:i]`` is ``path[i]``."""
    bits = []
    for text in record.texts:
        path = np.frombuffer(text.path, np.dtype("<i4"))
        drafts = np.frombuffer(text.drafts, np.dtype("<i4")).reshape(-1, record.depth)
        bits.append(drafts[:, 0] == path)
    return bits


def _replayed(texts: list[Bools], rng: np.random.Generator, num_tokens: int) -> Bools:
    """A text of the record, drawn; another one after it where it is too short."""
    drawn = [texts[rng.integers(len(texts))]]
    while sum(map(len, drawn)) < num_tokens:
        drawn.append(texts[rng.integers(len(texts))])
    return np.concatenate(drawn)[:num_tokens]
