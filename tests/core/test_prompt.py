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
