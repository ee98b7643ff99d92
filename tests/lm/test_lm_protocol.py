"""What every `LanguageModel` promises, asked of each of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
from lm_walk import joined, rows_of

from multispin.errors import BadInput
from multispin.lm.base import LanguageModel, Rows
from multispin.lm.ngram import NgramModel
from multispin.types import Logits, TokenIds

TEXT = "def is_prime(n: int) -> bool:\n    return n > 1 # zwölf 😀\n"


@pytest.fixture(params=["ngram", "llama", "reproducible_llama"])
def model(request: pytest.FixtureRequest) -> Iterator[LanguageModel]:
    if request.param == "ngram":
        found: LanguageModel = NgramModel.from_text(num_sequences=6, context_length=512)
    else:
        found = request.getfixturevalue(request.param)
    yield found
    for seq in range(found.num_sequences):
        found.free(seq)


def same(model: LanguageModel, a: Logits, b: Logits) -> bool:
    """Exactly equal, except that llama.cpp's default mode may depend on the shape of the batch."""
    if getattr(model, "reproducible", True):
        return np.array_equal(a, b)
    return bool(np.abs(a - b).max() < 1.5)


def one_at_a_time(model: LanguageModel, seq: int, ids: TokenIds) -> Logits:
    return np.concatenate(
        [model.forward(rows_of(seq, i, ids[i : i + 1])).copy() for i in range(len(ids))]
    )


def test_a_batch_gives_what_one_at_a_time_gives(model: LanguageModel) -> None:
    ids = model.tokenize(TEXT)
    expected = one_at_a_time(model, 0, ids)
    found = model.forward(rows_of(1, 0, ids))
    assert found.shape == (len(ids), model.vocabulary.size)
    assert same(model, found, expected)


def test_only_wanted_rows_come_back_and_the_view_is_writable(model: LanguageModel) -> None:
    ids = model.tokenize(TEXT)
    every = model.forward(rows_of(0, 0, ids)).copy()
    rows = rows_of(1, 0, ids, wants=False)
    rows.wants_logits[[2, 5]] = True
    some = model.forward(rows)
    assert same(model, some, every[[2, 5]])
    some[0, 0] = 1.0
    nothing = model.forward(rows_of(2, 0, ids, wants=False))
    assert nothing.shape == (0, model.vocabulary.size)


def test_ragged_batch_of_several_sequences(model: LanguageModel) -> None:
    ids = model.tokenize(TEXT)
    expected = one_at_a_time(model, 0, ids[:7])
    runs = [(5, 7), (1, 1), (3, 4)]
    found = model.forward(joined([rows_of(seq, 0, ids[:count]) for seq, count in runs]))
    assert same(model, found, np.concatenate([expected[:count] for _, count in runs]))


def test_truncate_forgets_and_free_empties(model: LanguageModel) -> None:
    ids = model.tokenize(TEXT)
    expected = model.forward(rows_of(0, 0, ids)).copy()
    model.truncate(0, 6)
    model.forward(rows_of(0, 6, ids[::-1][:3]))  # rejected tokens
    model.truncate(0, 6)
    assert same(model, model.forward(rows_of(0, 6, ids[6:])), expected[6:])
    model.free(0)
    assert same(model, model.forward(rows_of(0, 0, ids)), expected)


def test_fork_copies_a_prefix_and_leaves_the_source_alone(model: LanguageModel) -> None:
    ids = model.tokenize(TEXT)
    expected = model.forward(rows_of(0, 0, ids)).copy()
    model.forward(rows_of(4, 0, ids[:3]))  # what the fork overwrites
    model.fork(0, 4, 8)
    model.truncate(0, 5)
    assert same(model, model.forward(rows_of(4, 8, ids[8:])), expected[8:])
    assert same(model, model.forward(rows_of(0, 5, ids[5:])), expected[5:])
    model.fork(0, 4, 0)
    assert same(model, model.forward(rows_of(4, 0, ids[:2])), expected[:2])


def test_context_is_usable_to_its_last_position(model: LanguageModel) -> None:
    ids = np.resize(model.tokenize(TEXT), model.context_length)
    for begin in range(0, len(ids), 64):
        model.forward(rows_of(0, begin, ids[begin : begin + 64], wants=False))
    with pytest.raises(BadInput, match=f"the context holds {model.context_length} tokens"):
        model.forward(rows_of(0, model.context_length, ids[:1]))


def good_rows() -> Rows:
    return rows_of(1, 0, np.arange(3, dtype=np.int32))


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        ("seq", [1, 1, -1], "seq = -1: no such sequence"),
        ("seq", [99, 99, 99], "seq = 99: no such sequence"),
        ("token", [0, -1, 0], "token = -1: no such token id"),
        ("token", [0, 2**30, 0], "no such token id"),
        ("position", [0, 2, 3], "position = 2: row 1 must continue sequence 1 at position 1"),
        ("position", [-1, 0, 1], "position = -1: row 0 must continue"),
        ("seq", [1, 0, 1], "must"),
    ],
)
def test_bad_rows_are_refused(
    model: LanguageModel, field: str, values: list[int], message: str
) -> None:
    rows = dataclasses.replace(good_rows(), **{field: np.array(values, np.int32)})
    with pytest.raises(BadInput, match=message):
        model.forward(rows)
    assert len(model.forward(good_rows())) == 3  # nothing was fed


def test_interleaved_rows_are_refused(model: LanguageModel) -> None:
    rows = Rows(
        np.array([1, 0, 1], np.int32),
        np.array([0, 0, 0], np.int32),
        np.zeros(3, np.int32),
        np.ones(3, np.bool_),
    )
    with pytest.raises(BadInput, match="must be consecutive"):
        model.forward(rows)


def test_bad_lengths_and_sequences_are_refused(model: LanguageModel) -> None:
    model.forward(good_rows())
    with pytest.raises(BadInput, match="length = 4: sequence 1 holds 3 tokens"):
        model.truncate(1, 4)
    with pytest.raises(BadInput, match="length = -1"):
        model.truncate(1, -1)
    with pytest.raises(BadInput, match="seq = 99"):
        model.free(99)
    with pytest.raises(BadInput, match="seq = -1"):
        model.fork(1, -1, 2)


def test_empty_batch(model: LanguageModel) -> None:
    empty = rows_of(0, 0, np.zeros(0, np.int32))
    assert model.forward(empty).shape == (0, model.vocabulary.size)


def test_vocabulary_decodes_what_was_tokenized(model: LanguageModel) -> None:
    vocabulary = model.vocabulary
    assert vocabulary.decode(model.tokenize(TEXT)) == TEXT.encode()
    assert len(vocabulary.offsets) == vocabulary.size + 1
    assert vocabulary.end_ids
    assert all(vocabulary.decode([token]) == b"" for token in vocabulary.special_pieces)
    for token, piece in vocabulary.special_pieces.items():
        assert model.tokenize(piece, parse_special=True).tolist() == [token]
        assert model.tokenize(piece).tolist() != [token]
    assert len(vocabulary.fingerprint) == 16
