"""Log-probabilities of committed tokens, in the two ways in which OpenAI writes them."""

from __future__ import annotations

from collections.abc import Sequence

from multispin.api.openai_answers import ChatLogprobs, ChatToken, ChatTokenTop, TextLogprobs
from multispin.wire.frames import TokenLogprobs

LEAST = -9999.0  # stands for minus infinity, which JSON cannot write


def chat_logprobs(tokens: Sequence[TokenLogprobs]) -> ChatLogprobs:
    content = []
    for token in tokens:
        top = [_top(logprob, piece) for _, logprob, piece in token.top]
        this = _top(token.logprob, token.piece)
        content.append(ChatToken(this.token, this.logprob, this.bytes, top))
    return ChatLogprobs(content)


def _top(logprob: float, piece: bytes) -> ChatTokenTop:
    return ChatTokenTop(_text(piece), max(logprob, LEAST), list(piece))


def text_logprobs(tokens: Sequence[TokenLogprobs], offset: int) -> TextLogprobs:
    """``offset``: characters of the text before these tokens."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(_text(token.piece))
    return TextLogprobs(
        tokens=[_text(token.piece) for token in tokens],
        token_logprobs=[max(token.logprob, LEAST) for token in tokens],
        top_logprobs=[
            {_text(piece): max(logprob, LEAST) for _, logprob, piece in token.top}
            for token in tokens
        ],
        text_offset=offsets,
    )


def _text(piece: bytes) -> str:
    return piece.decode(errors="replace")
