"""What the target is given to read: the one place where a prompt becomes token ids' text."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from multispin.errors import BadInput
from multispin.lm.base import Vocabulary
from multispin.lm.chat import render_chat
from multispin.types import TokenIds
from multispin.wire.frames import ChatMessage


def prompt_text(
    prompt: str | list[ChatMessage], vocabulary: Vocabulary, tools: str = ""
) -> tuple[str, bool]:
    """The text to tokenize, and whether the names of special tokens in it become their ids.

    Chat messages are rendered by the target's template, ``tools`` (a JSON array, or empty) with
    them; BadInput where it has none, or knows of no tools.
    """
    if isinstance(prompt, str):
        if tools:
            raise BadInput("tools", "given", "go with chat messages, not with a text")
        return prompt, False
    template = vocabulary.chat_template
    if template is None:
        raise BadInput("messages", len(prompt), "the target has no chat template: send text")
    if tools and "tools" not in template:
        raise BadInput("tools", "given", "the target's chat template knows of none: leave them out")
    special, bos_id = vocabulary.special_pieces, vocabulary.bos_id
    text = render_chat(
        template,
        [_turn(message) for message in prompt],
        bos="" if bos_id is None else special.get(bos_id, ""),
        eos=special.get(min(vocabulary.end_ids, default=-1), ""),
        tools=_tools(tools) if tools else None,
    )
    return text, True


def with_bos(ids: TokenIds, prompt: str | list[ChatMessage], vocabulary: Vocabulary) -> TokenIds:
    """Plain text begins with the target's BOS, where it wants one; a template writes its own."""
    if vocabulary.bos_id is None or not isinstance(prompt, str) or len(ids) == 0:
        return ids
    return np.concatenate([np.array([vocabulary.bos_id], np.int32), ids])


def _turn(message: ChatMessage) -> dict[str, Any]:
    """As templates expect it: what is not there is undefined, and content is always a text."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls is not None:
        turn["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    return turn


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    """With its arguments as an object: templates write them as JSON themselves. OpenAI's API has
    them as a string, which a model may have got wrong: then it stays one."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = msgspec.json.decode(function["arguments"], type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _tools(tools: str) -> list[dict[str, Any]]:
    try:
        return msgspec.json.decode(tools, type=list[dict[str, Any]])
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadInput("tools", "(JSON)", f"must be an array of objects: {error}") from None
