"""Logit bias and penalties: what changes the logits of a few ids before sampling."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from multispin.errors import BadInput
from multispin.types import SamplingParams, TokenIds


class Context(NamedTuple):
    """All tokens so far: the prompt (``num_prompt`` of them), then what has been committed."""

    tokens: TokenIds
    num_prompt: int

    @property
    def position(self) -> int:
        """Absolute position of the next token."""
        return len(self.tokens)


def adjusted(
    row: npt.NDArray[np.float32],
    params: SamplingParams,
    context: Context,
    drafted: TokenIds | None = None,
) -> npt.NDArray[np.float32]:
    """The row after logit bias and penalties; changed in place where it can be, so use it once.

    ``drafted`` are tokens accepted after the context, output like the rest.

    In this order: l += bias; l = l / r if l > 0 else l * r for each token of prompt and output
    (Keskar et al., arXiv 1909.05858, as in Hugging Face); l -= presence + frequency * count for
    each token of the output (as OpenAI and vLLM).
    """
    if not row.flags.c_contiguous:
        row = np.ascontiguousarray(row)
    if not params.logit_bias and not params.has_penalties:
        return row
    if not row.flags.writeable:
        row = row.copy()
    if params.logit_bias:
        _add_bias(row, params.logit_bias)
    if params.has_penalties:
        tokens = context.tokens
        if drafted is not None and len(drafted):
            tokens = np.concatenate((tokens, drafted))
        if len(tokens):
            _penalise(row, params, tokens, context.num_prompt)
    return row


def _add_bias(row: npt.NDArray[np.float32], logit_bias: dict[int, float]) -> None:
    for token, bias in logit_bias.items():
        if not 0 <= token < row.size:
            raise BadInput("logit_bias", token, f"token ids run from 0 to {row.size - 1}")
        row[token] += bias


def _penalise(
    row: npt.NDArray[np.float32], params: SamplingParams, tokens: TokenIds, num_prompt: int
) -> None:
    if tokens.min() < 0 or tokens.max() >= row.size:
        raise BadInput("context", "token id", f"token ids run from 0 to {row.size - 1}")
    if params.repetition_penalty != 1.0:
        seen = row[tokens]  # repeated ids are harmless: each writes the same value
        r = params.repetition_penalty
        row[tokens] = np.where(seen > 0, seen / r, seen * r)
    output = tokens[num_prompt:]
    if params.frequency_penalty != 0.0:
        ids, counts = np.unique(output, return_counts=True)
        penalty = params.presence_penalty + params.frequency_penalty * counts
        row[ids] -= penalty.astype(np.float32)
    elif params.presence_penalty != 0.0:
        row[output] = row[output] - np.float32(params.presence_penalty)
