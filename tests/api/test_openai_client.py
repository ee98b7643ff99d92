"""OpenAI's own client, sync and async, against a real server and a real device agent."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any

import openai
import pytest

from tests.api.conftest import CONTEXT_LENGTH, Endpoints, complete, get

PROMPT = "The phone drafts and the server "
SAMPLED = {"temperature": 0.8, "seed": 7, "max_tokens": 48}
FLAGS = ("--temperature", "0.8", "--seed", "7", "--max-tokens", "48")


@cache
def expected(server: str, *flags: str) -> dict[str, Any]:
    return complete(server, PROMPT, *flags)


def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0)


def text_of(address: str, **fields: Any) -> str:
    with client(address) as it:
        wanted = {"model": "ngram", "prompt": PROMPT, **SAMPLED, **fields}
        answer = it.completions.create(**wanted)
    return answer.choices[0].text


def streamed(address: str, **fields: Any) -> list[str]:
    """The pieces of the text, as they came."""
    wanted = {"model": "ngram", "prompt": PROMPT, **SAMPLED, **fields}
    with client(address) as it, it.completions.create(stream=True, **wanted) as chunks:
        return [choice.text for chunk in chunks for choice in chunk.choices]


def chat(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


# --- the same text everywhere --------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_every_way_to_ask_gives_the_text_that_complete_writes(
    endpoints: Endpoints, endpoint: str, temperature: float
) -> None:
    flags = ("--temperature", str(temperature), *FLAGS[2:])
    text = expected(endpoints.server, *flags)["text"]
    wanted: dict[str, Any] = {**SAMPLED, "temperature": temperature}
    assert text_of(endpoint, **wanted) == text
    assert "".join(streamed(endpoint, **wanted)) == text
    messages = chat(PROMPT)  # the n-gram model's template is the text itself
    with client(endpoint) as it:
        answer = it.chat.completions.create(model="ngram", messages=messages, **wanted)
        assert answer.choices[0].message.content == text
        assert answer.choices[0].message.role == "assistant"
        assert answer.choices[0].finish_reason == "length"
        with it.chat.completions.create(
            model="ngram", messages=messages, stream=True, **wanted
        ) as chunks:
            choices = [chunk.choices[0] for chunk in chunks]
    assert choices[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for choice in choices) == text
    assert [choice.finish_reason for choice in choices] == [None] * (len(choices) - 1) + ["length"]


def test_the_async_client_writes_many_texts_side_by_side(
    endpoints: Endpoints, endpoint: str
) -> None:
    text = expected(endpoints.server, *FLAGS)["text"]
    wanted: dict[str, Any] = {"model": "ngram", "prompt": PROMPT, **SAMPLED}

    async def main() -> None:
        url = f"http://{endpoint}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as it:

            async def whole() -> str:
                return (await it.completions.create(**wanted)).choices[0].text

            async def stream() -> str:
                parts = []
                async with await it.completions.create(stream=True, **wanted) as chunks:
                    async for chunk in chunks:
                        parts.append(chunk.choices[0].text)
                return "".join(parts)

            # More than a device has places for: some wait.
            texts = await asyncio.gather(*(kind() for kind in (whole, stream) for _ in range(5)))
        assert set(texts) == {text}

    asyncio.run(main())


# --- what a request may say ----------------------------------------------------------------------


def test_a_stop_sequence_never_leaks_not_even_its_beginning(
    endpoints: Endpoints, endpoint: str
) -> None:
    text = expected(endpoints.server, *FLAGS)["text"]
    stop = text[20:26]
    before = text[: text.index(stop)]
    assert len(before) > 5
    pieces = streamed(endpoint, stop=[stop, "never to be seen"])
    assert "".join(pieces) == before
    with client(endpoint) as it:
        answer = it.completions.create(model="ngram", prompt=PROMPT, stop=stop, **SAMPLED)
    assert answer.choices[0].text == before
    assert answer.choices[0].finish_reason == "stop"


def test_a_text_with_the_beginning_of_a_stop_sequence_is_whole(endpoints: Endpoints) -> None:
    text = expected(endpoints.server, *FLAGS)["text"]
    stop = text[-4:] + "not so"
    assert "".join(streamed(endpoints.device, stop=stop)) == text


def test_n_answers_have_seeds_in_a_row(endpoint: str) -> None:
    with client(endpoint) as it:
        answer = it.completions.create(model="ngram", prompt=PROMPT, n=3, **SAMPLED)
    texts = [text_of(endpoint, seed=7 + i) for i in range(3)]
    assert [choice.text for choice in answer.choices] == texts
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(PROMPT)
    assert answer.usage.completion_tokens == 3 * 48


def test_the_seeds_of_several_answers_begin_anew_at_the_largest(endpoints: Endpoints) -> None:
    with client(endpoints.server) as it:
        wanted = {**SAMPLED, "seed": 2**63 - 1}
        answer = it.completions.create(model="ngram", prompt=PROMPT, n=2, **wanted)
    assert answer.choices[1].text == text_of(endpoints.server, seed=0)


def test_several_answers_are_streamed_side_by_side(endpoint: str) -> None:
    texts = [""] * 6
    wanted: dict[str, Any] = {"model": "ngram", "messages": chat(PROMPT), **SAMPLED}
    # More than a device has places for.
    with client(endpoint) as it, it.chat.completions.create(n=6, stream=True, **wanted) as chunks:
        for chunk in chunks:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [text_of(endpoint, seed=7 + i) for i in range(6)]


def test_several_prompts_are_answered_in_their_order(endpoint: str) -> None:
    prompts = [PROMPT, "a", PROMPT]
    with client(endpoint) as it:
        answer = it.completions.create(model="ngram", prompt=prompts, n=2, **SAMPLED)
    texts = [choice.text for choice in answer.choices]
    assert texts[:2] == texts[4:] == [text_of(endpoint, seed=7), text_of(endpoint, seed=8)]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 2 * len(PROMPT) + 1


def test_logit_bias_reaches_the_target(endpoint: str) -> None:
    bias = {str(ord("x")): 100}
    assert text_of(endpoint, logit_bias=bias, max_tokens=5) == "xxxxx"


@pytest.mark.parametrize(
    ("fields", "flags"),
    [
        ({"presence_penalty": 1.5}, ("--presence-penalty", "1.5")),
        ({"frequency_penalty": 1.5}, ("--frequency-penalty", "1.5")),
        ({"extra_body": {"repetition_penalty": 1.5}}, ("--repetition-penalty", "1.5")),
        ({"extra_body": {"top_k": 3}}, ("--top-k", "3")),
        ({"extra_body": {"min_p": 0.2}}, ("--min-p", "0.2")),
        ({"top_p": 0.6}, ("--top-p", "0.6")),
    ],
)
def test_sampling_is_shaped_as_by_complete(
    endpoints: Endpoints, fields: dict[str, Any], flags: tuple[str, ...]
) -> None:
    text = complete(endpoints.server, PROMPT, *FLAGS, *flags)["text"]
    assert text != expected(endpoints.server, *FLAGS)["text"]
    assert text_of(endpoints.device, **fields) == text


def test_draft_length_and_rule_can_be_chosen(endpoints: Endpoints) -> None:
    with client(endpoints.device) as it:
        wanted: dict[str, Any] = {"model": "ngram", "prompt": PROMPT, **SAMPLED}
        alone = it.completions.create(extra_body={"draft_length": 0}, **wanted)
        other = it.completions.create(extra_body={"acceptance_rule": "rejection"}, **wanted)
    assert alone.choices[0].text == expected(endpoints.server, *FLAGS)["text"]
    assert alone.usage is not None and alone.usage.completion_tokens_details is not None
    assert alone.usage.completion_tokens_details.accepted_prediction_tokens == 0
    assert other.choices[0].text != alone.choices[0].text  # as likely, with other noise


def test_what_is_harmless_is_taken_and_parts_of_text_are_one(endpoint: str) -> None:
    parts = [{"type": "text", "text": "The phone"}, {"type": "text", "text": "drafts "}]
    wanted: dict[str, Any] = {"model": "ngram", "max_tokens": 8, "stop": None, "seed": None}
    with client(endpoint) as it:
        answers = [
            it.chat.completions.create(
                messages=[
                    {"role": "developer", "content": "Be brief."},
                    {"role": "user", "content": content},
                ],
                user="somebody",
                metadata={"a": "b"},
                store=False,
                service_tier="auto",
                response_format={"type": "text"},
                **wanted,
            )
            for content in (parts, "The phone\ndrafts ")
        ]
        # What came back can be sent back.
        messages = [*chat("And "), answers[0].choices[0].message, *chat("then ")]
        it.chat.completions.create(messages=messages, **wanted)
    first, second = (answer.choices[0].message.content for answer in answers)
    assert first == second


# --- what an answer says -------------------------------------------------------------------------


def test_usage_counts_what_became_of_the_drafts(endpoints: Endpoints) -> None:
    for address, drafts in ((endpoints.server, False), (endpoints.device, True)):
        wanted: dict[str, Any] = {"model": "ngram", "prompt": PROMPT, **SAMPLED}
        with client(address) as it:
            whole = it.completions.create(**wanted)
            options = {"include_usage": True}
            with it.completions.create(stream=True, stream_options=options, **wanted) as chunks:
                *_, last = chunks
        assert last.choices == []
        for answer in (whole, last):
            usage = answer.usage
            assert usage is not None and usage.completion_tokens_details is not None
            assert usage.prompt_tokens == len(PROMPT)
            assert usage.completion_tokens == 48
            assert usage.total_tokens == len(PROMPT) + 48
            details = usage.completion_tokens_details
            speculation = answer.speculation  # type: ignore[union-attr]
            accepted, rejected = (
                details.accepted_prediction_tokens,
                details.rejected_prediction_tokens,
            )
            assert (accepted, accepted + rejected) == (
                speculation["num_accepted_tokens"],
                speculation["num_draft_tokens"],
            )
            assert (accepted > 0) == drafts
            assert answer.seed == 7  # type: ignore[union-attr]


def test_the_seed_that_was_drawn_gives_the_same_text_again(endpoint: str) -> None:
    with client(endpoint) as it:
        wanted: dict[str, Any] = {"model": "ngram", "prompt": PROMPT, "temperature": 1}
        answer = it.completions.create(max_tokens=40, **wanted)
        seed = answer.seed  # type: ignore[attr-defined]
        again = it.completions.create(max_tokens=40, seed=seed, **wanted)
        other = it.completions.create(max_tokens=40, **wanted)
    assert again.choices[0].text == answer.choices[0].text
    assert other.seed != seed  # type: ignore[attr-defined]


def test_a_chat_may_fill_the_context_and_a_completion_ends_after_256(endpoint: str) -> None:
    with client(endpoint) as it:
        never_end = {"256": -100}
        wanted: dict[str, Any] = {"model": "ngram", "logit_bias": never_end}
        answer = it.completions.create(prompt="x", **wanted)
        talk = it.chat.completions.create(messages=chat("x" * (CONTEXT_LENGTH - 300)), **wanted)
    assert answer.usage is not None and talk.usage is not None
    assert answer.usage.completion_tokens == 256
    assert talk.usage.completion_tokens == 300


def test_what_answers_is_said(endpoints: Endpoints) -> None:
    for address, drafter in ((endpoints.server, "none"), (endpoints.device, "ngram")):
        with client(address) as it:
            [listed] = it.models.list().data
            assert listed == it.models.retrieve("ngram")
        assert (listed.id, listed.object, listed.owned_by) == ("ngram", "model", "multispin")
        about = listed.model_extra
        assert about is not None
        assert about["drafter"] == drafter
        assert about["acceptance_rule"] == "coupled"
        assert about["context_length"] == CONTEXT_LENGTH
        assert about["link"] == "up"
    assert get(endpoints.device, "/health") == {
        "status": "ok",
        "target": "ngram",
        "drafter": "ngram",
        "acceptance_rule": "coupled",
        "link": "up",
        "offline": "wait",
    }


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"model": "gpt-4o"}, openai.NotFoundError, "model"),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"messages": chat("x" * CONTEXT_LENGTH)}, openai.BadRequestError, "messages"),
        ({"extra_body": {"best": 1}}, openai.BadRequestError, "best"),
    ],
)
def test_what_is_wrong_is_raised_as_openai_would(
    endpoint: str, fields: dict[str, Any], kind: type[openai.APIStatusError], param: str
) -> None:
    wanted: dict[str, Any] = {"model": "ngram", "messages": chat("hi"), "max_tokens": 3, **fields}
    with client(endpoint) as it:
        for stream in (False, True):
            with pytest.raises(kind) as caught:
                it.chat.completions.create(stream=stream, **wanted)
            assert caught.value.param == param
            assert caught.value.code
            assert caught.value.type == "invalid_request_error"
