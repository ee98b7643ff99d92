"""Reproducible mode is exact: not one bit of one logit depends on how the tokens were fed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_walk import Walk, one_at_a_time

from multispin.catalog import find_model
from multispin.errors import EngineFailed
from multispin.lm.base import Rows
from multispin.lm.llama import LlamaModel
from multispin.lm.ngram import NgramModel
from multispin.lm.reproducible import MAX_MICROBATCH_ROWS, plan_microbatches, self_check
from multispin.types import Logits


@given(
    num_rows=st.dictionaries(st.integers(0, 30), st.integers(1, 20), min_size=1, max_size=12),
)
def test_plan_feeds_every_row_once_and_in_order(num_rows: dict[int, int]) -> None:
    num_sequences = max(num_rows) + 1
    fed = dict.fromkeys(num_rows, 0)
    for microbatch in plan_microbatches(num_rows, num_sequences):
        num_computed = microbatch.num_seqs * microbatch.num_rows_each
        assert 2 <= num_computed <= MAX_MICROBATCH_ROWS
        assert microbatch.num_real
        assert microbatch.first_seq + microbatch.num_seqs <= num_sequences
        for seq in range(microbatch.first_seq, microbatch.first_seq + microbatch.num_seqs):
            assert microbatch.fed[seq] == fed.get(seq, 0)
        for seq, count in microbatch.num_real.items():
            assert 1 <= count <= microbatch.num_rows_each
            fed[seq] += count
    assert fed == num_rows


def test_plan_joins_neighbours() -> None:
    plan = list(plan_microbatches(dict.fromkeys(range(12), 1), 12))
    assert [(m.num_seqs, m.num_rows_each) for m in plan] == [(6, 1), (6, 1)]


def test_random_walk_is_exact(reproducible_llama: LlamaModel, small_model_path: object) -> None:
    _walk(reproducible_llama, small_model_path, num_steps=25, seed=1)


@pytest.mark.models
@pytest.mark.parametrize("name", ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"])
def test_random_walk_is_exact_for_the_qwen_pair(name: str) -> None:
    path = find_model(name)
    model = LlamaModel(
        path=path,
        name=name,
        num_sequences=12,
        context_length=300,
        threads=2,
        reproducible=True,
    )
    _walk(model, path, num_steps=6, seed=2)
    model.close()


def _walk(model: LlamaModel, path: object, *, num_steps: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    streams = [
        rng.integers(0, model.vocabulary.size, length).astype(np.int32)
        for length in (model.context_length, 40)
    ]
    alone = LlamaModel(
        path=str(path),
        name="alone",
        num_sequences=1,
        context_length=model.context_length,
        threads=2,
        reproducible=True,
    )
    references = [one_at_a_time(alone, stream) for stream in streams]
    alone.close()
    walk = Walk(model, streams, references, rng)
    walk.prefill(0, model.context_length - 40)
    for _ in range(num_steps):
        walk.step()
    assert walk.counts["logits compared"] > 20 * num_steps
    assert walk.counts["rejected drafts"] > 0
    for seq in range(model.num_sequences):
        model.free(seq)


def test_self_check_passes_and_leaves_the_sequences_empty(reproducible_llama: LlamaModel) -> None:
    self_check(reproducible_llama)
    assert not reproducible_llama._pool.lengths.any()


@pytest.mark.parametrize(("num_sequences", "context_length"), [(1, 280), (2, 16), (3, 1)])
def test_self_check_of_small_pools(num_sequences: int, context_length: int) -> None:
    self_check(NgramModel.from_text(num_sequences=num_sequences, context_length=context_length))


def test_self_check_refuses_the_default_mode(llama: LlamaModel) -> None:
    with pytest.raises(EngineFailed, match="small: not reproducible with this build"):
        self_check(llama)
    for seq in range(llama.num_sequences):
        llama.free(seq)


class Forgetful(NgramModel):
    """Wrong in one way only: the logits of a sequence used before are slightly off."""

    used: bool = False

    def forward(self, rows: Rows) -> Logits:
        return super().forward(rows) * np.float32(1.0001 if self.used else 1.0)

    def free(self, seq: int) -> None:
        super().free(seq)
        self.used = True


def test_self_check_sees_a_model_that_depends_on_its_history() -> None:
    model = Forgetful.from_text(num_sequences=3, context_length=300)
    with pytest.raises(EngineFailed, match="a sequence used before give other logits"):
        self_check(model)
