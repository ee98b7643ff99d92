"""Log-probabilities, JSON schemas and tools, through OpenAI's client."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.api.conftest import Endpoints
from tests.api.test_openai_client import PROMPT, SAMPLED, chat, client, text_of

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "kind": {"enum": ["kiosk", "robot"]}},
    "required": ["ok", "kind"],
    "additionalProperties": False,
}
AS_SCHEMA = {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA, "strict": True}}
TOOL = {
    "type": "function",
    "function": {"name": "ring_bell", "parameters": {"type": "object", "properties": {}}},
}


# --- log-probabilities ---------------------------------------------------------------------------


def test_log_probabilities_stand_beside_the_tokens(endpoints: Endpoints) -> None:
    contents = []
    wanted: dict[str, Any] = {**SAMPLED, "model": "ngram", "logprobs": True, "top_logprobs": 3}
    for address in endpoints:
        with client(address) as it:
            choice = it.chat.completions.create(messages=chat(PROMPT), **wanted).choices[0]
            with it.chat.completions.create(messages=chat(PROMPT), stream=True, **wanted) as chunks:
                streamed = [
                    token
                    for chunk in chunks
                    if chunk.choices[0].logprobs
                    for token in chunk.choices[0].logprobs.content or []
                ]
        assert choice.logprobs is not None and choice.logprobs.content is not None
        content = choice.logprobs.content
        assert "".join(token.token for token in content) == choice.message.content
        assert b"".join(bytes(token.bytes or []) for token in content).decode() == (
            choice.message.content
        )
        assert streamed == content
        contents.append(content)
    assert contents[0] == contents[1]
    for token in contents[0]:
        assert len(token.top_logprobs) == 3
        best = [top.logprob for top in token.top_logprobs]
        assert best == sorted(best, reverse=True)
        assert token.logprob <= best[0] <= 0.0


def test_plain_completions_have_them_in_columns(endpoint: str) -> None:
    with client(endpoint) as it:
        wanted: dict[str, Any] = {"model": "ngram", "prompt": PROMPT, "max_tokens": 20}
        choice = it.completions.create(logprobs=2, **wanted).choices[0]
        bare = it.completions.create(logprobs=0, **wanted).choices[0]
        none = it.completions.create(**wanted).choices[0]
    columns = choice.logprobs
    assert columns is not None and columns.tokens is not None
    assert "".join(columns.tokens) == choice.text
    assert columns.text_offset == list(range(20))  # the n-gram model's tokens are bytes
    assert columns.token_logprobs is not None and columns.top_logprobs is not None
    for token, logprob, top in zip(
        columns.tokens, columns.token_logprobs, columns.top_logprobs, strict=True
    ):
        assert len(top) == 2
        assert logprob == top[token] == max(top.values())  # at temperature 0
    assert bare.logprobs is not None
    assert bare.logprobs.top_logprobs == [{}] * 20
    assert none.logprobs is None


# --- JSON ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_an_answer_follows_its_schema_with_and_without_drafts(
    endpoints: Endpoints, seed: int
) -> None:
    wanted: dict[str, Any] = {**SAMPLED, "model": "ngram", "seed": seed, "max_tokens": 200}
    texts = []
    for address in endpoints:
        with client(address) as it:
            answer = it.chat.completions.create(
                messages=chat(PROMPT), response_format=AS_SCHEMA, **wanted
            )
        texts.append(answer.choices[0].message.content)
        assert answer.choices[0].finish_reason == "stop"
        document = json.loads(texts[-1] or "")
        assert set(document) == {"ok", "kind"}
        assert document["kind"] in ("kiosk", "robot")
    assert texts[0] == texts[1]


def test_any_object_will_do(endpoint: str) -> None:
    with client(endpoint) as it:
        answer = it.chat.completions.create(
            model="ngram",
            messages=chat(PROMPT),
            response_format={"type": "json_object"},
            max_tokens=100,
            temperature=1,
            seed=3,
        )
    text = answer.choices[0].message.content or ""
    assert text.lstrip().startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_a_schema_that_cannot_be_followed_is_refused(endpoint: str) -> None:
    impossible = {"name": "it", "schema": {"type": "nonsense"}}
    with client(endpoint) as it, pytest.raises(openai.BadRequestError) as caught:
        it.chat.completions.create(
            model="ngram",
            messages=chat(PROMPT),
            response_format={"type": "json_schema", "json_schema": impossible},
        )
    assert caught.value.param == "response_format"


# --- tools ---------------------------------------------------------------------------------------


def test_tools_reach_the_chat_template(endpoint: str) -> None:
    """That of the n-gram model lists their names."""
    wanted: dict[str, Any] = {**SAMPLED, "model": "ngram", "messages": chat(PROMPT)}
    with client(endpoint) as it:
        told = it.chat.completions.create(tools=[TOOL], **wanted)
        without = it.chat.completions.create(tools=[TOOL], tool_choice="none", **wanted)
    assert told.choices[0].message.content == text_of(endpoint, prompt=f"ring_bell\n{PROMPT}")
    assert without.choices[0].message.content == text_of(endpoint)


def test_a_conversation_with_calls_can_go_on(endpoint: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "ring_bell", "arguments": "{}"}}
    messages: list[Any] = [
        *chat("Ring."),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "rung"},
        {"role": "user", "name": "ann", "content": PROMPT},
    ]
    with client(endpoint) as it:
        answer = it.chat.completions.create(
            model="ngram", messages=messages, tools=[TOOL], **SAMPLED
        )
    prompt = f"ring_bell\nRing.\n\nrung\n{PROMPT}"
    assert answer.choices[0].message.content == text_of(endpoint, prompt=prompt)
