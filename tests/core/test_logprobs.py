"""Log-probabilities: the target's own, whatever was done to the logits afterwards."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from scipy.special import log_softmax

from multispin.core.device import Committed
from multispin.core.logprobs import row_logprobs
from multispin.lm.base import Rows, Vocabulary
from multispin.lm.ngram import END_OF_TEXT, NgramModel
from multispin.wire.frames import Open, TokenLogprobs, Verdict
from tests.core.harness import PROMPT, Writer, new_drafter, new_server, request, run, write


@pytest.mark.parametrize("size", [5, 300, 50_000])
def test_they_are_the_log_softmax(size: int) -> None:
    rng = np.random.default_rng(size)
    logits = (rng.normal(size=(4, size)) * 8).astype(np.float32)
    logits[3, : size // 2] = -np.inf
    chosen = [0, size - 1, int(logits[2].argmax()), size - 1]
    num_top = min(20, size)
    for row, token, (logprob, top) in zip(
        logits, chosen, row_logprobs(logits, chosen, num_top), strict=True
    ):
        expected = log_softmax(row.astype(np.float64))
        assert logprob == pytest.approx(expected[token], abs=1e-9)
        order = np.lexsort((np.arange(size), -row))[:num_top]
        finite = [i for i in order.tolist() if row[i] > -np.inf]
        assert [token for token, _ in top] == finite
        assert [value for _, value in top] == pytest.approx(expected[finite], abs=1e-9)


def test_the_probabilities_of_all_tokens_sum_to_one() -> None:
    row = np.random.default_rng(1).normal(size=257).astype(np.float32)
    every = row_logprobs(np.tile(row, (257, 1)), list(range(257)), 0)
    assert sum(math.exp(logprob) for logprob, _ in every) == pytest.approx(1.0, abs=1e-12)
    assert all(top == [] for _, top in every)


def wanted(num_logprobs: int = 3, schema: str = "", **fields: object) -> Open:
    message = request(**fields)  # type: ignore[arg-type]
    return msgspec.structs.replace(message, num_logprobs=num_logprobs, json_schema=schema)


def logprobs_of(message: Open, kind: str) -> tuple[list[int], list[TokenLogprobs]]:
    harness = new_server()
    writer = Writer(harness, message, new_drafter(kind), "link")
    told: list[TokenLogprobs] = []
    take = writer.session.apply

    def apply(verdict: Verdict, now: float) -> Committed | None:
        committed = take(verdict, now)
        if committed is not None:
            assert [entry.id for entry in committed.logprobs] == committed.ids
            told.extend(committed.logprobs)
        return committed

    writer.session.apply = apply  # type: ignore[method-assign]
    run(harness, [writer])
    return writer.session.committed, told


def targets_own(committed: list[int]) -> np.ndarray:
    """log P of every token behind the prompt and each beginning of a text.  [tokens, vocab]"""
    model = NgramModel.from_text(num_sequences=1, context_length=1024)
    tokens = np.array([*PROMPT.encode(), *committed], np.int32)
    rows = Rows(
        np.zeros_like(tokens),
        np.arange(len(tokens), dtype=np.int32),
        tokens,
        np.ones(len(tokens), np.bool_),
    )
    return log_softmax(model.forward(rows).astype(np.float64), axis=1)[len(PROMPT) - 1 : -1]


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.0, "rule": "greedy"},
        {"temperature": 1.7},
        {"temperature": 0.8, "repetition_penalty": 1.3, "logit_bias": {32: -3.0}, "top_k": 9},
        {"temperature": 0.8, "rule": "rejection"},
        {"temperature": 0.8, "schema": "{}", "max_tokens": 120},
    ],
)
@pytest.mark.parametrize("kind", ["none", "weaker"])
def test_bias_penalties_temperature_and_schema_do_not_change_them(
    fields: dict[str, object], kind: str
) -> None:
    committed, told = logprobs_of(wanted(**fields), kind)
    own = targets_own(committed)
    assert [entry.id for entry in told] == committed
    for entry, row in zip(told, own, strict=True):
        assert entry.logprob == pytest.approx(row[entry.id], abs=1e-5)
        assert entry.piece == bytes([entry.id])
        assert len(entry.top) == 3
        for token, logprob, piece in entry.top:
            assert logprob == pytest.approx(row[token], abs=1e-5)
            assert piece == (bytes([token]) if token < END_OF_TEXT else b"<|end|>")
        best = sorted(row.tolist(), reverse=True)[:3]
        assert [logprob for _, logprob, _ in entry.top] == pytest.approx(best, abs=1e-5)


def test_drafting_does_not_change_them() -> None:
    for seed in range(4):
        message = wanted(seed=seed, temperature=0.7)
        assert logprobs_of(message, "same") == logprobs_of(message, "none")


def test_none_where_the_text_ends_and_none_where_nobody_asked() -> None:
    harness = new_server()
    # The end of the text is all but certain: its own log-probability is not told.
    message = wanted(logit_bias={END_OF_TEXT: 100.0})
    writer = Writer(harness, message, None, "link")
    run(harness, [writer])
    [_, (_, verdict)] = harness.sent
    assert (verdict.finish, verdict.num_committed, verdict.logprobs) == ("stop", 0, [])
    plain = write(wanted(-1), "weaker").harness
    assert all(not v.logprobs for _, v in plain.sent if isinstance(v, Verdict))


def test_a_special_token_goes_by_its_name() -> None:
    vocabulary = Vocabulary(b"ab", np.array([0, 1, 2, 2]), frozenset(), special_pieces={2: "<x>"})
    assert [vocabulary.name(token) for token in range(3)] == [b"a", b"b", b"<x>"]
