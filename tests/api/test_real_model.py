"""The promise of the endpoints with a real model: the same text from both, and from `complete`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.conftest import complete, started
from tests.api.test_openai_client import chat, client

QUESTION = "Name three uses of a kiosk. 你好!"
SEED, NUM_TOKENS = 7, 48


@pytest.mark.models
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_both_endpoints_write_what_complete_writes(temperature: float) -> None:
    serve = ("serve", "--target", "smollm2-135m", "--reproducible", "--port", "0")
    agent = ("device", "--draft", "lookup", "--port", "0")
    flags = ("--temperature", str(temperature), "--seed", str(SEED), "--max-tokens")
    wanted: dict[str, Any] = {"temperature": temperature, "seed": SEED, "max_tokens": NUM_TOKENS}
    with started(*serve) as server, started(*agent, "--server", server) as device:
        expected = complete(server, QUESTION, "--chat", *flags, str(NUM_TOKENS))
        for address in (server, device):
            with client(address) as it:
                asked = {"model": "smollm2-135m", "messages": chat(QUESTION), **wanted}
                answer = it.chat.completions.create(**asked)
                with it.chat.completions.create(stream=True, **asked) as chunks:
                    parts = [chunk.choices[0].delta.content or "" for chunk in chunks]
            assert answer.choices[0].message.content == expected["text"]
            assert "".join(parts) == expected["text"]
            assert not any("\ufffd" in part for part in parts)
            assert answer.choices[0].finish_reason == expected["finish_reason"]
            assert answer.usage is not None
            assert answer.usage.prompt_tokens == expected["usage"]["prompt_tokens"]
