"""How well a drafter foretells a target, and how long it takes: texts written as a device would.

For each prompt the target's own text is walked once. From wherever the text has got to, the drafter
proposes, the engine judges with the rule that serves devices, and the walk goes on after the
correction or bonus token: verification is lossless, so the path is the target's own
whatever is drafted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from multispin.bench.verification import Tell, fill
from multispin.core.drafter import Drafter, Sampler
from multispin.core.engine import Batch, Engine, Work, emptied
from multispin.core.speculation import SpeculationStats
from multispin.errors import BadInput
from multispin.types import AcceptanceRule, SamplingParams, TokenIds
from multispin.wire.frames import Verdict


@dataclass(frozen=True)
class Sampling:
    """How the texts are written."""

    params: SamplingParams
    rule: AcceptanceRule
    seed: int
    max_tokens: int
    draft_length: int


@dataclass
class Agreement:
    """Counters of one text or of several."""

    stats: SpeculationStats = field(default_factory=SpeculationStats)
    num_judged: int = 0  # drafted tokens up to the first that was rejected, it included
    num_empty: int = 0  # times that the drafter had nothing to propose
    draft_s: list[float] = field(default_factory=list)  # per token, one for each draft

    @property
    def acceptance(self) -> float:
        """Probability that the next drafted token is accepted: accepted over judged.

        The maximum-likelihood estimate for the model's independent tokens, whatever lengths were
        drafted. Nothing to propose counts as one rejection: to the cell it is worth as much.
        """
        return self.stats.num_accepted_tokens / max(1, self.num_judged + self.num_empty)

    @property
    def draft_s_per_token(self) -> float:
        """Median over drafts; 0 where nothing was drafted."""
        return statistics.median(self.draft_s) if self.draft_s else 0.0

    def add(self, other: Agreement) -> None:
        self.stats.add(other.stats)
        self.num_judged += other.num_judged
        self.num_empty += other.num_empty
        self.draft_s += other.draft_s


def check_prompts(engine: Engine, prompts: Sequence[TokenIds], sampling: Sampling) -> None:
    """Raise BadInput for a prompt whose text would not fit into a sequence."""
    needed = sampling.max_tokens + 2 * sampling.draft_length + 2
    most = engine.info.context_length - needed
    for number, prompt in enumerate(prompts, 1):
        if not 1 <= len(prompt) <= most:
            raise BadInput(
                f"prompt {number}",
                f"{len(prompt)} tokens",
                f"must have 1 to {most}: shorten it, lower --max-tokens or raise --ctx-size",
            )


def walk_prompts(
    engine: Engine,
    drafter: Drafter,
    prompts: Sequence[TokenIds],
    sampling: Sampling,
    tell: Tell,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Agreement]:
    """Write a text for each prompt; what was counted, in the order of the prompts."""
    counted = []
    for number, prompt in enumerate(prompts, 1):
        counted.append(_walk(engine, drafter, prompt, sampling, clock))
        tell(f"prompt {number} of {len(prompts)}: acceptance {counted[-1].acceptance:.3f}")
    return counted


def _walk(
    engine: Engine,
    drafter: Drafter,
    prompt: TokenIds,
    sampling: Sampling,
    clock: Callable[[], float],
) -> Agreement:
    counted = Agreement()
    end_ids = np.array(engine.info.end_ids, np.int32)
    text = np.empty(len(prompt) + sampling.max_tokens + sampling.draft_length + 1, np.int32)
    text[: len(prompt)] = prompt
    length = len(prompt)
    fill(engine, 0, prompt[:-1])
    if len(prompt) == 1:
        engine.step(Batch([], [emptied(0)]))
    drafter.free(0)
    sampler = Sampler(len(prompt), sampling.params, sampling.rule, sampling.seed)
    while length - len(prompt) < sampling.max_tokens:
        began = clock()
        drafted = drafter.draft(0, text[:length], sampling.draft_length, sampler)
        seconds = clock() - began
        # the first draft of a text reads the whole prompt
        if len(drafted.ids) and length > len(prompt):
            counted.draft_s.append(seconds / len(drafted.ids))
        ids = _until_end(drafted.ids, end_ids)
        text[length : length + len(ids)] = ids
        num_accepted, token = _judge(
            engine, text[: length + len(ids)], length, len(prompt), sampling
        )
        _count(counted, len(ids), num_accepted, token)
        length += num_accepted + 1
        text[length - 1] = token
        if np.isin(text[length - num_accepted - 1 : length], end_ids).any():
            break
    return counted


def _until_end(ids: TokenIds, end_ids: TokenIds) -> TokenIds:
    """The draft up to and with the token that would end the text: nothing follows it."""
    ends = np.flatnonzero(np.isin(ids, end_ids))
    return ids[: ends[0] + 1] if len(ends) else ids


def _judge(
    engine: Engine, text: TokenIds, length: int, num_prompt: int, sampling: Sampling
) -> tuple[int, int]:
    """Accepted tokens of the draft behind ``text[:length]``, and the token after them."""
    work = Work(
        seq=0,
        start=length - 1,
        tokens=text[length - 1 :].astype("<i4").tobytes(),
        num_draft=len(text) - length,
        samples=True,
        num_prompt=num_prompt,
        params=sampling.params,
        rule=sampling.rule,
        seed=sampling.seed,
    )
    outcome = engine.step(Batch([work])).outcomes[0]
    return outcome.num_accepted, outcome.token


def _count(counted: Agreement, num_draft: int, num_accepted: int, token: int) -> None:
    counted.num_empty += num_draft == 0
    counted.num_judged += min(num_accepted + 1, num_draft)
    verdict = Verdict(
        session=0,
        epoch=0,
        start=0,
        num_draft=num_draft,
        num_accepted=num_accepted,
        num_committed=num_accepted + 1,
        token=token,
        draft_length=0,
    )
    counted.stats.count(verdict)
