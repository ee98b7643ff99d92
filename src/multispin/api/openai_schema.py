"""The requests of OpenAI's API that this one understands, field by field.

Fields that are not listed are refused by name. Null stands for a field that was left out. What a
field left out means is decided where requests are made of these (dialects.py).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from multispin.types import AcceptanceRule

MAX_ANSWERS = 16  # to one request
MAX_TOP_LOGPROBS = 20

Ignored: TypeAlias = Annotated[Any, Meta(description="Accepted, without any effect.")]
Count: TypeAlias = Annotated[int, Meta(ge=1, lt=2**31)]
Budget: TypeAlias = Annotated[float, Meta(ge=0)]


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    """What all parts of a request have in common."""


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: Ignored = None


class CommonRequest(Strict, kw_only=True):
    """The fields that both endpoints take."""

    model: str
    max_tokens: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_ANSWERS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Beyond OpenAI's:
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    acceptance_rule: AcceptanceRule | None = None
    draft_length: Annotated[int, Meta(ge=0, lt=2**15)] | None = None
    provisional: bool | None = None  # take text that may be replaced
    max_s_per_token: Budget | None = None
    max_joules_per_token: Budget | None = None
    max_cost_per_token: Budget | None = None
    min_quality: Annotated[int, Meta(ge=0, lt=2**31)] | None = None
    # Of no consequence here:
    user: Ignored = None
    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None


# --- chat ----------------------------------------------------------------------------------------


class TextPart(Strict):
    type: Literal["text"]
    text: str


class CalledFunction(Strict):
    name: str
    arguments: str = "{}"


class ToolCall(Strict):
    function: CalledFunction
    id: str | None = None
    type: Literal["function"] = "function"
    index: Ignored = None


class Message(Strict):
    """A turn of the chat; the rest is what clients send back with an answer of this API."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: Ignored = None
    annotations: Ignored = None
    audio: None = None
    function_call: None = None


class Function(Strict, omit_defaults=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Ignored = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class TextFormat(Strict, tag_field="type", tag="text"):
    pass


class JsonFormat(Strict, tag_field="type", tag="json_object"):
    pass


class NamedSchema(Strict):
    name: str
    schema: dict[str, Any] | bool = True
    description: str | None = None
    strict: Ignored = None


class SchemaFormat(Strict, tag_field="type", tag="json_schema"):
    json_schema: NamedSchema


class ChatRequest(CommonRequest, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: TextFormat | JsonFormat | SchemaFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: Ignored = None
    modalities: list[Literal["text"]] | None = None


# --- plain text ----------------------------------------------------------------------------------


class CompletionRequest(CommonRequest, kw_only=True):
    prompt: str | Annotated[list[str], Meta(min_length=1, max_length=MAX_ANSWERS)]
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    suffix: Literal[""] | None = None
    best_of: Literal[1] | None = None
