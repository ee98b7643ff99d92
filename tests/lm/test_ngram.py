from __future__ import annotations

import math
import time
from collections import Counter

import numpy as np
import pytest
from lm_walk import rows_of

from multispin.errors import BadInput
from multispin.lm.ngram import END_OF_TEXT, NgramModel, byte_vocabulary, corpus
from multispin.types import TokenIds


def witten_bell(ids: list[int], size: int, context: list[int], token: int) -> float:
    """The equation, term by term, from the counts."""
    if context:
        length = len(context)
        follow = Counter(
            ids[i + length] for i in range(len(ids) - length) if ids[i : i + length] == context
        )
        lower = witten_bell(ids, size, context[1:], token)
    else:
        follow, lower = Counter(ids), 1 / size
    if not follow:
        return lower
    return (follow[token] + len(follow) * lower) / (follow.total() + len(follow))


def test_probabilities_are_those_of_the_equation() -> None:
    rng = np.random.default_rng(3)
    ids = rng.integers(0, 7, 300).astype(np.int32)
    model = NgramModel.from_tokens(ids, 9, order=4)
    context = rng.integers(0, 9, 30).astype(np.int32)  # with tokens that were never seen
    logits = model.forward(rows_of(0, 0, context))
    for row in range(30):
        known = context[max(0, row - 2) : row + 1].tolist()
        expected = [math.log(witten_bell(ids.tolist(), 9, known, token)) for token in range(9)]
        np.testing.assert_allclose(logits[row], expected, rtol=1e-5)


def test_every_distribution_is_positive_and_sums_to_one() -> None:
    model = NgramModel.from_text(order=5)
    ids = np.random.default_rng(4).integers(0, 257, 400).astype(np.int32)
    ids[100:300] = model.tokenize(corpus())[1000:1200]
    probability = np.exp(model.forward(rows_of(0, 0, ids)).astype(np.float64))
    assert (probability > 0).all()
    np.testing.assert_allclose(probability.sum(axis=1), 1.0, atol=1e-5)


def test_logits_depend_on_the_last_tokens_alone() -> None:
    model = NgramModel.from_text(order=3)
    ids = model.tokenize("the server and the link")
    a = model.forward(rows_of(0, 0, ids))[-1].copy()
    b = model.forward(rows_of(1, 0, ids[-2:]))[-1]
    assert np.array_equal(a, b)


def test_it_has_learned_something() -> None:
    model = NgramModel.from_text()
    text = "The weather on Monday was good."
    ids = model.tokenize(text)
    logits = model.forward(rows_of(0, 0, ids)).astype(np.float64)
    bits = -logits[np.arange(len(ids) - 1), ids[1:]].mean() / math.log(2)
    assert bits < 3.0  # a byte drawn uniformly has 8
    assert model.forward(rows_of(1, 0, model.tokenize("as 42.\n")))[-1].argmax() < END_OF_TEXT


def test_passages_end() -> None:
    model = NgramModel.from_text("one.\n\n\ntwo.")
    logits = model.forward(rows_of(0, 0, model.tokenize("two.")))
    assert logits[-1].argmax() == END_OF_TEXT
    assert byte_vocabulary().fingerprint == model.vocabulary.fingerprint


def test_over_another_models_tokens() -> None:
    ids: TokenIds = np.array([5, 150_000, 7, 5, 150_000, 7], np.int32)
    model = NgramModel.from_tokens(ids, 151_665)
    logits = model.forward(rows_of(0, 0, ids[:2]))
    assert logits.shape == (2, 151_665)
    assert logits.argmax(axis=1).tolist() == [150_000, 7]
    with pytest.raises(BadInput, match="tokenize with the model whose ids these are"):
        model.tokenize("text")


@pytest.mark.parametrize("ids", [[], [-1], [9]])
def test_bad_ids_are_refused(ids: list[int]) -> None:
    with pytest.raises(BadInput, match="must be token ids from 0 to 8"):
        NgramModel.from_tokens(np.array(ids, np.int32), 9)


def test_bad_order_is_refused() -> None:
    with pytest.raises(BadInput, match="order = 0"):
        NgramModel.from_text(order=0)


def test_unigram_ignores_the_context() -> None:
    model = NgramModel.from_text(order=1)
    logits = model.forward(rows_of(0, 0, model.tokenize("ab")))
    assert np.array_equal(logits[0], logits[1])


def test_a_token_costs_far_less_than_a_millisecond() -> None:
    model = NgramModel.from_text()
    ids = model.tokenize(corpus())[:4000]
    begin = time.perf_counter()
    model.forward(rows_of(0, 0, ids))
    assert (time.perf_counter() - begin) / len(ids) < 1e-3  # 50 us in quiet
