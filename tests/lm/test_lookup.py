from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multispin.errors import BadInput
from multispin.lm.lookup import lookup


def plain_lookup(
    context: list[int], num_tokens: int, max_ngram: int, min_ngram: int
) -> tuple[list[int], int]:
    """The rule as its docstring says it, with loops."""
    for length in range(min(max_ngram, len(context) - 1), min_ngram - 1, -1):
        suffix = context[-length:]
        for begin in range(len(context) - length - 1, -1, -1):
            if context[begin : begin + length] == suffix:
                text = list(context)
                while len(text) < len(context) + num_tokens:
                    text.append(text[len(text) - (len(context) - length - begin)])
                return text[len(context) :], length
    return [], 0


@given(
    context=st.lists(st.integers(0, 3), max_size=40),
    num_tokens=st.integers(0, 12),
    min_ngram=st.integers(1, 3),
    more=st.integers(0, 3),
)
def test_same_as_with_loops(context: list[int], num_tokens: int, min_ngram: int, more: int) -> None:
    found = lookup(
        np.array(context, np.int32), num_tokens, max_ngram=min_ngram + more, min_ngram=min_ngram
    )
    assert found.ids.dtype == np.int32
    ids, length = plain_lookup(context, num_tokens, min_ngram + more, min_ngram)
    assert found.ids.tolist() == ids
    if num_tokens:
        assert found.length == length


def test_example() -> None:
    context = np.array([1, 2, 3, 4, 9, 2, 3], np.int32)
    assert lookup(context, 2).ids.tolist() == [4, 9]
    assert lookup(context, 2).length == 2
    assert lookup(context, 6).ids.tolist() == [4, 9, 2, 3, 4, 9]
    assert lookup(np.array([1, 2, 3], np.int32), 4).ids.tolist() == []


def test_bad_arguments() -> None:
    context = np.zeros(4, np.int32)
    with pytest.raises(BadInput, match="min_ngram = 40: must be 1 to max_ngram = 32"):
        lookup(context, 1, min_ngram=40)
    with pytest.raises(BadInput, match="num_tokens = -1"):
        lookup(context, -1)
