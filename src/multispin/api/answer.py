"""One text for a client, from its request to its last token."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from multispin.api.openai_answers import TokenDetails, Usage
from multispin.api.texts import Texts
from multispin.core.device import Committed
from multispin.core.reading import extended
from multispin.core.speculation import SpeculationStats
from multispin.net.device import Request
from multispin.types import FinishReason
from multispin.wire.frames import TokenLogprobs


class Answer:
    """What there is of a text so far. ``index`` tells the answers to one request apart."""

    def __init__(self, index: int, request: Request) -> None:
        self.index = index
        self.request = request
        self.model = ""  # that writes it, by its own name
        self.text = ""
        self.logprobs: list[TokenLogprobs] = []
        self.finish: FinishReason | None = None
        self.num_prompt = 0
        self.num_tokens = 0
        self.stats = SpeculationStats()

    async def write(self, texts: Texts, begin: Begin, tell: Tell) -> None:
        """Write it. ``begin`` is awaited once it is certain that it can be, ``tell`` for all that
        is committed."""
        async with texts.write(self.request) as writing:
            self.num_prompt, self.model = writing.session.num_prompt, writing.target
            await begin(self)
            async for committed in writing:
                self.text = extended(self.text, committed.text, committed.replaces)
                self.logprobs += committed.logprobs
                self.num_tokens += 0 if committed.provisional else len(committed.ids)
                self.finish = committed.finish
                await tell(self, committed)
            self.stats = writing.stats


Begin: TypeAlias = Callable[[Answer], Awaitable[None]]
Tell: TypeAlias = Callable[[Answer, Committed], Awaitable[None]]


def usage(answers: Sequence[Answer], num_per_prompt: int) -> Usage:
    """Of all answers; a prompt counts once, however many answers it has."""
    num_prompt = sum(answer.num_prompt for answer in answers[::num_per_prompt])
    num_tokens = sum(answer.num_tokens for answer in answers)
    stats = speculation(answers)
    num_rejected = stats.num_draft_tokens - stats.num_accepted_tokens
    details = TokenDetails(stats.num_accepted_tokens, num_rejected)
    return Usage(num_prompt, num_tokens, num_prompt + num_tokens, details)


def speculation(answers: Sequence[Answer]) -> SpeculationStats:
    total = SpeculationStats()
    for answer in answers:
        total.add(answer.stats)
    return total
