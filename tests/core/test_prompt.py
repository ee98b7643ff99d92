import json

import numpy as np
import pytest

from multispin.core.prompt import prompt_text, with_bos
from multispin.errors import BadInput
from multispin.lm.base import Vocabulary
from multispin.wire.frames import ChatMessage

CHAT = [ChatMessage("user", "hi")]


def vocabulary(bos_id: int | None, template: str | None = None) -> Vocabulary:
    special = {0: "<s>", 1: "</s>"}
    return Vocabulary(
        b"", np.zeros(3, np.int64), frozenset({1}), bos_id, template, special_pieces=special
    )


def test_plain_text_begins_with_bos_where_the_target_wants_one() -> None:
    ids = np.array([7, 8], np.int32)
    assert with_bos(ids, "text", vocabulary(0)).tolist() == [0, 7, 8]  # id 0 is an id
    assert with_bos(ids, "text", vocabulary(None)).tolist() == [7, 8]
    assert with_bos(ids, CHAT, vocabulary(0)).tolist() == [7, 8]
    assert with_bos(ids[:0], "", vocabulary(0)).tolist() == []


def test_a_template_gets_the_special_tokens_and_a_missing_one_is_named() -> None:
    template = "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}"
    assert prompt_text(CHAT, vocabulary(0, template)) == ("<s>hi</s>", True)
    assert prompt_text(CHAT, vocabulary(None, template)) == ("hi</s>", True)
    assert prompt_text("<s>hi", vocabulary(0)) == ("<s>hi", False)
    with pytest.raises(BadInput, match="chat template"):
        prompt_text(CHAT, vocabulary(0))


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
WITH_TOOLS = (
    "{{ tools | tojson }}{% for m in messages %}|{{ m.role }}:{{ m.content }}"
    "{% if m.name is defined %}<{{ m.name }}>{% endif %}"
    "{% for c in m.tool_calls or [] %}({{ c.function.name }} {{ c.function.arguments | tojson }})"
    "{% endfor %}{% if m.tool_call_id %}#{{ m.tool_call_id }}{% endif %}{% endfor %}"
)


def test_tools_and_their_calls_reach_the_template() -> None:
    call = {"id": "c1", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
    broken = {"id": "c2", "function": {"name": "weather", "arguments": "{oops"}}
    chat = [
        ChatMessage("user", "hi", name="ann"),
        ChatMessage("assistant", None, tool_calls=[call, broken]),
        ChatMessage("tool", "rain", tool_call_id="c1"),
    ]
    text, _ = prompt_text(chat, vocabulary(None, WITH_TOOLS), json.dumps([WEATHER]))
    tools, *turns = text.split("|")
    assert json.loads(tools) == [WEATHER]
    assert turns == [
        "user:hi<ann>",
        'assistant:(weather {"city": "Bonn"})(weather "{oops")',
        "tool:rain#c1",
    ]
    assert prompt_text(CHAT, vocabulary(None, WITH_TOOLS))[0] == "null|user:hi"


@pytest.mark.parametrize(
    ("prompt", "template", "tools", "message"),
    [
        ("text", WITH_TOOLS, "[]", "go with chat messages"),
        (CHAT, "{{ messages }}", "[]", "knows of none"),
        (CHAT, WITH_TOOLS, "{}", "array of objects"),
        (CHAT, WITH_TOOLS, "[1]", "array of objects"),
        (CHAT, WITH_TOOLS, "[", "array of objects"),
        (CHAT, WITH_TOOLS, "[" * 5000, "array of objects"),
    ],
)
def test_tools_that_nobody_would_see_are_refused(
    prompt: str | list[ChatMessage], template: str, tools: str, message: str
) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        prompt_text(prompt, vocabulary(None, template), tools)
    assert caught.value.field == "tools"
