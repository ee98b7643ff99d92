"""The answers of OpenAI's API, and what this one adds to them: seed and speculation."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from multispin.core.reading import Replaces
from multispin.types import FinishReason


class TokenDetails(msgspec.Struct):
    """Drafted tokens that the target verified."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: TokenDetails


class Reply(msgspec.Struct, kw_only=True):
    """What stands in every part of an answer."""

    id: str
    object: str
    created: int
    model: str


class Whole(Reply, kw_only=True):
    """``seed`` is that of the first answer; ``speculation`` counts over all of them."""

    usage: Usage
    seed: int
    speculation: dict[str, Any]


class Chunk(Reply, kw_only=True):
    """The last one of a stream has the usage, where that was asked for, and no choices.

    What is ``provisional`` was drafted without a link to the server and may be replaced; a chunk
    that ``replaces`` says from where on.
    """

    provisional: bool | UnsetType = UNSET
    replaces: Replaces | UnsetType = UNSET
    usage: Usage | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    speculation: dict[str, Any] | UnsetType = UNSET


# --- chat ----------------------------------------------------------------------------------------


class ChatTokenTop(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class ChatToken(ChatTokenTop):
    top_logprobs: list[ChatTokenTop]


class ChatLogprobs(msgspec.Struct):
    content: list[ChatToken]


class ChatAnswer(msgspec.Struct):
    role: str
    content: str


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletion(Whole, kw_only=True):
    choices: list[ChatChoice]


class Delta(msgspec.Struct, omit_defaults=True):
    role: str | None = None
    content: str | None = None


class ChatChunkChoice(msgspec.Struct):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatChunk(Chunk, kw_only=True):
    choices: list[ChatChunkChoice]


# --- plain text ----------------------------------------------------------------------------------


class TextLogprobs(msgspec.Struct):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None


class TextCompletion(Whole, kw_only=True):
    choices: list[TextChoice]


class TextChunk(Chunk, kw_only=True):
    choices: list[TextChoice]


# --- models --------------------------------------------------------------------------------------


class Model(msgspec.Struct):
    """The target, under the name that requests give, and how it is reached."""

    id: str
    object: str
    created: int
    owned_by: str
    context_length: int
    drafter: str
    acceptance_rule: str  # above temperature 0, where a request names none
    link: str  # "up" or "down"


class Models(msgspec.Struct):
    object: str
    data: list[Model]
