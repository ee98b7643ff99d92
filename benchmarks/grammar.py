"""What a JSON Schema, and log-probabilities, cost beside the logits of a large vocabulary.

Run: python benchmarks/grammar.py [--model qwen2.5-coder-0.5b] [--rounds 20]

Measured, on one core, processor time: the masks of a text that follows its schema, in drafts of 8
tokens of which every one is accepted (mask and its application, per row; every row is fresh), the
compilation at the beginning of a text, and the first mask, when the lexer knows nothing yet. The
floor is one maximum over the row. ``verify`` is the greedy rule on the same rows, for comparison;
``logprobs`` the chosen token's log-probability and the 5 most likely ones', copy of the raw row
included. Logits are Gaussian. Medians over the rounds; the worst mask, too. The last line is one
JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from multispin.acceptance import Context, verify
from multispin.catalog import find_model
from multispin.core.logprobs import row_logprobs
from multispin.lm.base import Vocabulary
from multispin.lm.grammar import Grammars
from multispin.lm.json_grammar import compile_schema
from multispin.lm.llama import LlamaModel
from multispin.types import SamplingParams, TokenIds

LENGTH = 8
NOTHING = np.zeros(0, np.int32)
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
            "required": ["street", "city"],
        },
    },
    "required": ["name", "age", "tags", "address"],
}
SOMEBODY = {
    "name": "Ada Lovelace, Countess",
    "age": 36,
    "tags": ["red", "blue", "green"],
    "address": {"street": "12 St James's Square", "city": "London"},
}
CODE = {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}(-[a-z0-9]{1,12}){1,8}$"}
MANY = {"enum": [f"item number {number} of the list" for number in range(1000)]}
CASES: dict[str, tuple[Any, Any]] = {
    "any JSON": ({}, SOMEBODY),
    "object of strings and numbers": (PERSON, SOMEBODY),
    "string of at most 200 characters": ({"type": "string", "maxLength": 200}, "lorem ipsum " * 9),
    "pattern": (CODE, "AB-1234-abcdef-0123456789-xyz-quartz"),
    "one of 1,000 texts": (MANY, "item number 617 of the list"),
}


def seconds(work: Callable[..., object], *arguments: object) -> float:
    began = time.thread_time()
    work(*arguments)
    return time.thread_time() - began


def median_ms(times: list[float]) -> float:
    return float(np.median(times)) * 1e3


def time_masks(grammars: Grammars, size: int, schema: str, ids: TokenIds) -> list[float]:
    """Seconds per row, draft after draft, to the end of the text."""
    times = []
    kept = 0
    grammars.constrain(0, schema, NOTHING, NOTHING, np.zeros((1, size), np.float32))  # compiled
    while kept <= len(ids):
        draft = ids[kept : kept + LENGTH]
        rows = np.random.default_rng(kept).normal(size=(len(draft) + 1, size)).astype(np.float32)
        spent = seconds(grammars.constrain, 0, schema, ids[:kept], draft, rows)
        assert all(row[token] > -np.inf for row, token in zip(rows, draft, strict=False))
        times += [spent / len(rows)] * len(rows)
        kept += len(draft) + 1
    return times


def measure(model: LlamaModel, vocabulary: Vocabulary, rounds: int) -> dict[str, float]:
    results: dict[str, float] = {}
    size = vocabulary.size
    grammars = Grammars(vocabulary)
    results["once: the vocabulary as a trie"] = 1e3 * seconds(grammars.prepare)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(LENGTH + 1, size)).astype(np.float32)
    draft = rows.argmax(axis=1)[:LENGTH].astype(np.int32)
    every = len(rows)

    def median(work: Callable[..., object], *arguments: object) -> float:
        return median_ms([seconds(work, *arguments) for _ in range(rounds)])

    results["row: floor, one maximum"] = median(rows.max, 1) / every
    context = Context(np.arange(100, dtype=np.int32), 50)
    greedy = (rows, draft, SamplingParams(), "greedy", 0, context)
    results["row: verify, greedy"] = median(verify, *greedy) / every
    results["row: logprobs, 5 alternatives"] = (
        median(lambda: row_logprobs(rows.copy(), [0] * every, 5)) / every
    )
    for name, (schema, value) in CASES.items():
        text = json.dumps(schema)
        ids = model.tokenize(json.dumps(value))
        compiling = median(compile_schema, text, grammars._tokenizer)
        results[f"text: compile and first mask, {name}"] = compiling
        times: list[float] = []
        for _ in range(rounds):
            times += time_masks(grammars, size, text, ids)
        results[f"row: mask, {name}"] = median_ms(times)
        results[f"row: slowest draft's mask, {name}"] = max(times) * 1e3
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b", help="whose vocabulary")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    model = LlamaModel(
        path=find_model(arguments.model),
        name=arguments.model,
        num_sequences=1,
        context_length=64,
        threads=1,
    )
    try:
        print(f"milliseconds at {model.vocabulary.size:,} tokens ({arguments.model}), one core")
        results = measure(model, model.vocabulary, arguments.rounds)
    finally:
        model.close()
    for name, ms in results.items():
        print(f"{name:62} {ms:9.3f}")
    print(json.dumps({"vocabulary": model.vocabulary.size, "ms": results}))


if __name__ == "__main__":
    main()
