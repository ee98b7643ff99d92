from __future__ import annotations

import pytest

from multispin.catalog import find_model
from multispin.errors import BadInput
from multispin.lm.chat import render_chat
from multispin.lm.llama import LlamaModel

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello <you> & me"},
]
EXPECTED = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello <you> & me<|im_end|>\n"


def test_the_small_models_own_template(llama: LlamaModel) -> None:
    template = llama.vocabulary.chat_template
    assert template is not None
    prompt = render_chat(template, MESSAGES, bos="<|im_start|>", eos="<|im_end|>")
    assert prompt == EXPECTED + "<|im_start|>assistant\n"
    ids = llama.tokenize(prompt, parse_special=True)
    assert ids[0] == llama.tokenize("<|im_start|>", parse_special=True)[0]
    assert set(ids.tolist()) & llama.vocabulary.end_ids  # <|im_end|> is one token, not text
    assert render_chat(template, MESSAGES, bos="", eos="", add_generation_prompt=False) == EXPECTED


@pytest.mark.models
def test_the_qwen_template_with_and_without_tools() -> None:
    model = LlamaModel(
        path=find_model("qwen2.5-coder-0.5b"),
        name="qwen",
        num_sequences=1,
        context_length=16,
        threads=2,
    )
    template = model.vocabulary.chat_template or ""
    model.close()
    assert render_chat(template, MESSAGES, bos="", eos="<|im_end|>") == (
        EXPECTED + "<|im_start|>assistant\n"
    )
    assert "You are Qwen" in render_chat(template, MESSAGES[1:], bos="", eos="<|im_end|>")
    tool = {"type": "function", "function": {"name": "clock", "description": "what's <now>"}}
    prompt = render_chat(template, MESSAGES, bos="", eos="<|im_end|>", tools=[tool])
    assert '"name": "clock", "description": "what\'s <now>"' in prompt


def test_helpers_of_hugging_face_templates() -> None:
    template = (
        "{{ bos_token }}{{ messages[0] | tojson }}{% for m in messages %}{% break %}{% endfor %}"
    )
    assert render_chat(template, [{"role": "user", "content": "<é>"}], bos="B", eos="E") == (
        'B{"role": "user", "content": "<é>"}'
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses: roles must alternate"),
        ("{% if %}", "chat_template = line 1"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{{ messages.__class__.__mro__ }}", "refuses"),
        ("{{ messages[0].content.missing.more }}", "refuses"),
    ],
)
def test_templates_that_refuse_or_misbehave(template: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        render_chat(template, MESSAGES, bos="", eos="")
