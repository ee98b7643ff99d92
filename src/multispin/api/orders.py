"""Which texts a request asks for.

Fields that were left out mean what they mean for `multispin complete`, temperature 0 included; only
a chat's answer may by default be as long as the context allows.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from multispin.api.errors import ApiError
from multispin.api.openai_schema import (
    MAX_ANSWERS,
    ChatRequest,
    CommonRequest,
    CompletionRequest,
    JsonFormat,
    Message,
    SchemaFormat,
    ToolCall,
)
from multispin.api.texts import Texts
from multispin.errors import BadInput
from multispin.net.device import Request
from multispin.types import MAX_TOKENS, AcceptanceRule, SamplingParams
from multispin.wire.frames import ChatMessage, Wish

NUM_SEEDS = 2**63
BUDGETS = Wish.__struct_fields__[1:]  # what a request may ask of its target besides the name


def chat_requests(body: ChatRequest, texts: Texts) -> list[Request]:
    if body.top_logprobs is not None and not body.logprobs:
        raise BadInput("top_logprobs", body.top_logprobs, "needs logprobs true")
    prompt = [_chat_message(index, message) for index, message in enumerate(body.messages)]
    wanted: dict[str, Any] = {}
    if body.logprobs:
        wanted["num_logprobs"] = body.top_logprobs or 0
    if isinstance(body.response_format, JsonFormat):
        wanted["json_schema"] = '{"type":"object"}'
    if isinstance(body.response_format, SchemaFormat):
        wanted["json_schema"] = _json(body.response_format.json_schema.schema)
    if body.tools and body.tool_choice != "none":
        wanted["tools"] = _json(body.tools)
    most = body.max_completion_tokens or body.max_tokens or texts.context_length
    return _requests(body, texts, [prompt], most, wanted)


def completion_requests(body: CompletionRequest, texts: Texts) -> list[Request]:
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    wanted = {} if body.logprobs is None else {"num_logprobs": body.logprobs}
    return _requests(body, texts, prompts, body.max_tokens or MAX_TOKENS, wanted)


def _requests(
    body: CommonRequest,
    texts: Texts,
    prompts: Sequence[str | list[ChatMessage]],
    max_tokens: int,
    wanted: dict[str, Any],
) -> list[Request]:
    """``n`` answers to each prompt; the i-th of them has seed + i (modulo 2^63)."""
    if body.provisional and not body.stream:
        raise BadInput("provisional", "true", "needs stream true: a whole answer is never that")
    num = body.n or 1
    if num * len(prompts) > MAX_ANSWERS:
        raise BadInput("n", num, f"at most {MAX_ANSWERS} answers, over all prompts")
    given = {name: getattr(body, name) for name in SamplingParams.__struct_fields__}
    params = SamplingParams(**{name: value for name, value in given.items() if value is not None})
    params.validate()
    asked = {name: getattr(body, name) for name in BUDGETS}
    budgets = {name: value for name, value in asked.items() if value is not None}
    seed = secrets.randbits(32) if body.seed is None else body.seed
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    draft_length = texts.draft_length if body.draft_length is None else body.draft_length
    return [
        Request(
            prompt=prompt,
            params=params,
            rule=_rule(body, texts.rule, params),
            seed=(seed + index) % NUM_SEEDS,
            max_tokens=max_tokens,
            draft_length=draft_length,
            stop=stop,
            provisional=bool(body.provisional),
            wish=Wish(**budgets),
            **wanted,
        )
        for prompt in prompts
        for index in range(num)
    ]


def _rule(body: CommonRequest, default: AcceptanceRule, params: SamplingParams) -> AcceptanceRule:
    """At temperature 0 every rule is greedy."""
    if params.temperature == 0:
        return "greedy"
    if body.acceptance_rule == "greedy":
        raise BadInput("acceptance_rule", "greedy", "needs temperature 0; above it take another")
    return body.acceptance_rule or default


# --- chat messages -------------------------------------------------------------------------------


def _chat_message(index: int, message: Message) -> ChatMessage:
    """As templates know it: one text, and developers speak as the system."""
    content = message.content
    if content is None and not message.tool_calls:
        param = f"messages[{index}].content"
        raise ApiError(400, f"{param}: is missing", code="missing_parameter", param=param)
    if isinstance(content, list):
        content = "\n".join(part.text for part in content)
    return ChatMessage(
        role="system" if message.role == "developer" else message.role,
        content=content,
        name=message.name,
        tool_calls=[_tool_call(call) for call in message.tool_calls or []] or None,
        tool_call_id=message.tool_call_id,
    )


def _tool_call(call: ToolCall) -> dict[str, Any]:
    called = {"name": call.function.name, "arguments": call.function.arguments}
    named = {} if call.id is None else {"id": call.id}
    return {**named, "type": "function", "function": called}


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
