"""JSON Schemas as grammars over a vocabulary, by llguidance: compiled, within limits, or refused.

No NumPy here: the process in which a server tries a schema (net/schema_trial.py) starts quickly.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from multispin.errors import BadInput

MAX_SCHEMA_BYTES = 1 << 16
# Between the parts of a value: none, a space, or a new line and its indentation. Any number of
# them would do, too; but a small model may then never stop writing them.
WHITESPACE = r"[ ]|\r?\n[ \t]{0,32}"


def compile_schema(schema: str, tokenizer: LLTokenizer) -> LLMatcher:
    """A matcher at the beginning of a value that the schema describes. BadInput where it is none.

    ``schema`` is a JSON Schema as JSON text. Keywords that llguidance cannot enforce are refused.
    What a compilation may cost is limited but for a few keywords (``multipleOf``): try the schemas
    of strangers elsewhere first.
    """
    matcher = LLMatcher(tokenizer, _grammar(schema), log_level=0, limits=_limits())
    if not matcher.get_error():
        matcher.compute_bitmask()  # finds out whether any value can begin
    if error := matcher.get_error():
        raise refusal(schema, _reason(error))
    return matcher


def refusal(schema: str, reason: str) -> BadInput:
    shown = schema if len(schema) <= 60 else f"{schema[:57]}..."
    return BadInput("json_schema", shown, reason)


def _grammar(schema: str) -> str:
    try:
        value: Any = msgspec.json.decode(schema)
    except (msgspec.DecodeError, RecursionError) as error:
        raise refusal(schema, f"is not JSON: {error}") from None
    if value is True:
        value = {}
    if not isinstance(value, dict):
        raise refusal(schema, "must be a JSON object, or true")
    # Instead of whatever llguidance options came with it.
    value["x-guidance"] = {"whitespace_pattern": WHITESPACE}
    # The model is free in how it splits what the schema dictates into tokens.
    return f'%llguidance {{"no_forcing": true}}\nstart: %json {json.dumps(value)}'


def _limits() -> LLParserLimits:
    """llguidance's own, 15 ms for a mask or so, without what it does beforehand for large ones."""
    return LLParserLimits(precompute_large_lexemes=False, verbose_errors=False)


def _reason(error: str) -> str:
    """What one of llguidance's messages says, without the places and states behind it."""
    if error.startswith("NoExtension"):
        return "no value satisfies it"
    said = error.partition("\n   1 |")[0].partition("\n<non-verbose/>")[0]
    said = said.rpartition("failed to compile JSON schema: ")[2] or said
    return " ".join(said.split())


def tokenizer_of(pieces: Sequence[bytes], end_ids: Sequence[int]) -> LLTokenizer:
    """Of a vocabulary's byte strings: a second's work for 150,000 of them."""
    return LLTokenizer(
        TokenizerWrapper(_Pieces(pieces, end_ids[0])),
        eos_token=list(end_ids),
        slices=LLTokenizer.json_slices(),
    )


class _Pieces:
    """What llguidance wants to know of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], eos_token_id: int) -> None:
        self.tokens = tokens
        self.eos_token_id = eos_token_id

    def __call__(self, text: bytes) -> list[int]:
        raise AssertionError("nothing is forced, so nothing is tokenized")
