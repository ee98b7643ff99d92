"""What the target is given to read: the one place where a prompt becomes token ids' text."""

from __future__ import annotations

import numpy as np

from multispin.errors import BadInput
from multispin.lm.base import Vocabulary
from multispin.lm.chat import render_chat
from multispin.types import TokenIds
from multispin.wire.frames import ChatMessage


def prompt_text(prompt: str | list[ChatMessage], vocabulary: Vocabulary) -> tuple[str, bool]:
    """The text to tokenize, and whether the names of special tokens in it become their ids.

    Chat messages are rendered by the target's template; BadInput where it has none.
    """
    if isinstance(prompt, str):
        return prompt, False
    if vocabulary.chat_template is None:
        raise BadInput("messages", len(prompt), "the target has no chat template: send text")
    special, bos_id = vocabulary.special_pieces, vocabulary.bos_id
    text = render_chat(
        vocabulary.chat_template,
        [{"role": m.role, "content": m.content} for m in prompt],
        bos="" if bos_id is None else special.get(bos_id, ""),
        eos=special.get(min(vocabulary.end_ids, default=-1), ""),
    )
    return text, True


def with_bos(ids: TokenIds, prompt: str | list[ChatMessage], vocabulary: Vocabulary) -> TokenIds:
    """Plain text begins with the target's BOS, where it wants one; a template writes its own."""
    if vocabulary.bos_id is None or not isinstance(prompt, str) or len(ids) == 0:
        return ids
    return np.concatenate([np.array([vocabulary.bos_id], np.int32), ids])
