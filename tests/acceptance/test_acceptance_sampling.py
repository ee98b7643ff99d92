"""Truncation, penalties and skipping equal their naive definitions, in every case."""

from __future__ import annotations

import numpy as np
import pytest
from acceptance_reference import naive_adjusted, naive_distribution
from hypothesis import given, settings
from hypothesis import strategies as st

from multispin.acceptance import Context
from multispin.acceptance.gumbel import gumbel_argmax, gumbel_argmax_full
from multispin.acceptance.noise import Stream, derive_key
from multispin.acceptance.penalties import adjusted
from multispin.acceptance.sampling import truncate
from multispin.errors import BadInput, MultispinError
from multispin.types import SamplingParams

# Few values, so that ties abound; the extremes of what a model or a mask can leave.
values = st.sampled_from([0.0, -0.0, 1.0, 1.5, -3.0, 7.25, 40.0, -np.inf, -3.4e38, 3.4e38, 1e-38])
rows = st.lists(values | st.floats(-20, 20, width=32), min_size=1, max_size=60).map(
    lambda row: np.array(row, dtype=np.float32)
)
truncations = st.builds(
    SamplingParams,
    temperature=st.sampled_from([1e-3, 0.3, 0.8, 1.0, 2.5, 100.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 59, 60, 1000]),
    top_p=st.sampled_from([1.0, 1e-9, 0.1, 0.25, 0.5, 0.75, 0.95, 1.0 - 1e-12]),
    min_p=st.sampled_from([0.0, 1e-9, 0.05, 0.5, 1.0]),
)


def assert_same(row: np.ndarray, params: SamplingParams) -> None:
    support = truncate(row, params)
    expected = naive_distribution(row, params)
    np.testing.assert_array_equal(np.sort(support.ids), np.flatnonzero(expected))
    p = support.weights / support.weights.sum()
    np.testing.assert_allclose(p, expected[support.ids], rtol=1e-12)
    order = np.lexsort((support.ids, -row[support.ids].astype(np.float64)))
    np.testing.assert_array_equal(order, np.arange(order.size))


@settings(max_examples=600, deadline=None)
@given(rows, truncations)
def test_truncation_of_short_rows(row, params):
    if np.isfinite(row.max()):
        assert_same(row, params)


@pytest.mark.parametrize("size", [2047, 2049, 5000, 151_936, 262_144 + 3000])
@pytest.mark.parametrize("kind", ["flat", "peaked", "ties", "masked", "uniform"])
def test_truncation_of_long_rows(size, kind):
    row = long_row(np.random.default_rng(size), size, kind)
    for params in (
        SamplingParams(temperature=0.8, top_p=0.95),
        SamplingParams(temperature=1.0, top_p=0.3),
        SamplingParams(temperature=3.0, top_p=0.999),
        SamplingParams(temperature=0.8, top_k=40),
        SamplingParams(temperature=0.8, top_k=3000, top_p=0.7, min_p=0.001),
        SamplingParams(temperature=0.8, min_p=0.05),
        SamplingParams(temperature=0.8, top_p=0.9, min_p=0.01),
    ):
        assert_same(row, params)


def long_row(rng: np.random.Generator, size: int, kind: str) -> np.ndarray:
    row = rng.normal(0.0, 2.0, size).astype(np.float32)
    if kind == "peaked":
        row[rng.integers(0, size, 5)] = rng.uniform(10.0, 20.0, 5)
    elif kind == "heavy":
        row = rng.standard_cauchy(size).astype(np.float32)
    elif kind == "ties":
        row = np.round(row)
    elif kind == "masked":
        row[rng.random(size) < 0.999] = -np.inf
        row[rng.integers(size)] = 1.0
    elif kind == "uniform":
        row[:] = -2.5
    elif kind == "wide":
        row *= 50.0
    return row


@pytest.mark.parametrize("size, repeats", [(32, 300), (1000, 200), (4097, 200), (151_936, 12)])
@pytest.mark.parametrize("kind", ["flat", "peaked", "heavy", "ties", "masked", "uniform", "wide"])
def test_skipping_changes_nothing(size, repeats, kind):
    rng = np.random.default_rng(size)
    row = long_row(rng, size, kind)
    for n in range(repeats):
        if n % 4 == 0:
            row = long_row(rng, size, kind)
        key = derive_key(n, 17, Stream.TARGET)
        for temperature in (0.8, 0.05, 5.0) if size < 10_000 else (0.8,):
            token = gumbel_argmax(row, temperature, key)
            assert token == gumbel_argmax_full(row, temperature, key)


def test_skipping_beyond_one_block_of_groups():
    rng = np.random.default_rng(0)
    for n in range(4):
        row = long_row(rng, 300_001, "flat")
        row[262_144 + n] = 12.0
        key = derive_key(n, 1, Stream.TARGET)
        assert gumbel_argmax(row, 1.0, key) == gumbel_argmax_full(row, 1.0, key)


@pytest.mark.parametrize("where", [0, 31, 2048, 151_935])
def test_the_only_possible_token_is_chosen(where):
    row = np.full(151_936, -np.inf, dtype=np.float32)
    row[where] = -7.0
    assert gumbel_argmax(row, 0.7, derive_key(1, 2, Stream.TARGET)) == where
    assert truncate(row, SamplingParams(temperature=0.7, top_p=0.9)).ids.tolist() == [where]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_without_a_distribution_are_refused(bad):
    for size in (4, 151_936):
        row = np.full(size, bad, dtype=np.float32)
        with pytest.raises(MultispinError):
            gumbel_argmax(row, 1.0, derive_key(0, 0, Stream.TARGET))
        with pytest.raises(MultispinError):
            truncate(row, SamplingParams(temperature=1.0, top_p=0.5))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.floats(-20, 20, width=32), min_size=8, max_size=8),
    st.lists(st.integers(0, 7), max_size=20),
    st.lists(st.integers(0, 7), max_size=6),
    st.integers(0, 20),
    st.builds(
        SamplingParams,
        temperature=st.just(1.0),
        repetition_penalty=st.sampled_from([1.0, 0.5, 1.7]),
        presence_penalty=st.sampled_from([0.0, -2.0, 0.3]),
        frequency_penalty=st.sampled_from([0.0, -0.5, 1.1]),
        logit_bias=st.dictionaries(st.integers(0, 7), st.sampled_from([-100.0, 3.5]), max_size=3),
    ),
)
def test_penalties(row, tokens, drafted, num_prompt, params):
    num_prompt = min(num_prompt, len(tokens))
    row = np.array(row, dtype=np.float32)
    expected = naive_adjusted(row, params, tokens + drafted, num_prompt)
    context = Context(np.array(tokens, dtype=np.int32), num_prompt)
    frozen = row.copy()
    frozen.flags.writeable = False
    after = np.array(drafted, dtype=np.int32)
    np.testing.assert_array_equal(adjusted(frozen, params, context, after), expected)
    assert adjusted(row, params, context, after) is row  # in place where it can be
    np.testing.assert_array_equal(row, expected)


def test_ids_out_of_the_vocabulary_are_refused():
    row = np.zeros(8, dtype=np.float32)
    context = Context(np.array([8], dtype=np.int32), 1)
    for params in (SamplingParams(logit_bias={8: 1.0}), SamplingParams(logit_bias={-1: 1.0})):
        with pytest.raises(BadInput, match="logit_bias"):
            adjusted(row, params, context)
    with pytest.raises(BadInput, match="context"):
        adjusted(row, SamplingParams(repetition_penalty=1.1), context)
