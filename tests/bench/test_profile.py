"""Measuring a pair: the fit, the walk along the target's text, and the cell that is written."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from multispin.bench.pair import Agreement, Sampling, check_prompts, walk_prompts
from multispin.bench.profile import (
    Machine,
    Profile,
    cell_toml,
    default_prompts,
    load_drafter,
    measure,
    shown_name,
    tokenize_prompt,
)
from multispin.bench.verification import (
    MAX_CONTEXT_TOKENS,
    BatchTime,
    batch_shapes,
    fit_curve,
    measure_batches,
)
from multispin.cell import parse_cell
from multispin.control import solve
from multispin.core.drafter import NOTHING, Drafted, ModelDrafter, Sampler
from multispin.core.engine import Engine
from multispin.errors import BadInput
from multispin.lm.ngram import NgramModel
from multispin.net.drafting import DrafterOptions
from multispin.types import SamplingParams, TokenIds

MACHINE = Machine("a processor", 2, 2, "a library")


def silent(line: str) -> None:
    pass


def new_engine() -> Engine:
    return Engine(NgramModel.from_text(num_sequences=8, context_length=512), max_rows=64)


def sampling(**changes: object) -> Sampling:
    values = {"params": SamplingParams(), "rule": "greedy", "seed": 1, "max_tokens": 40}
    return Sampling(**{**values, "draft_length": 5, **changes})  # type: ignore[arg-type]


class Oracle:
    """Proposes the text that it was given, with every ``wrong``-th token made another one."""

    name = "oracle"
    vocabulary = None
    num_sequences = 1

    def __init__(self, text: list[int], wrong: int = 0) -> None:
        self._text = text
        self._wrong = wrong

    def draft(self, seq: int, tokens: TokenIds, length: int, sampler: Sampler) -> Drafted:
        begin = len(tokens) - sampler.num_prompt
        ids = np.array(self._text[begin : begin + length], np.int32)
        if self._wrong:
            is_wrong = (np.arange(begin, begin + len(ids)) + 1) % self._wrong == 0
            ids = np.where(is_wrong, (ids + 1) % 256, ids).astype(np.int32)
        return Drafted(ids, [], np.ones(len(ids), np.float32))

    def free(self, seq: int) -> None:
        pass


class Nothing(Oracle):
    def draft(self, *_: object) -> Drafted:
        return NOTHING


def greedy_text(prompt: TokenIds, num_tokens: int) -> list[int]:
    """The target's own text, one token at a time, by another way."""
    model = NgramModel.from_text(num_sequences=1, context_length=512)
    drafter = ModelDrafter(model)
    return drafter.draft(
        0, prompt, num_tokens, Sampler(len(prompt), SamplingParams(), "greedy", 1)
    ).ids.tolist()


@pytest.mark.parametrize("truth", [(0.02, 0.01, 0.003), (0.0, 0.01, 0.0), (0.07, 0.0, 0.019)])
def test_the_fit_recovers_the_coefficients_of_a_straight_curve(
    truth: tuple[float, float, float],
) -> None:
    fixed, device, token = truth
    times = [BatchTime(n, k, fixed + device * k + token * n) for n, k in batch_shapes(8)]
    curve = fit_curve(times)
    assert (curve.fixed_s, curve.per_device_s, curve.per_token_s) == pytest.approx(truth, abs=1e-9)
    assert curve.max_error < 1e-9


def test_no_coefficient_is_negative_and_the_errors_are_those_of_the_table() -> None:
    rng = np.random.default_rng(3)
    times = [BatchTime(n, k, float(rng.uniform(0.01, 0.5))) for n, k in batch_shapes(8)]
    curve = fit_curve(times)
    assert min(curve.fixed_s, curve.per_device_s, curve.per_token_s) >= 0
    errors = [abs(curve.seconds(b.rows, b.sequences) / b.seconds - 1) for b in times]
    assert curve.mean_error == pytest.approx(np.mean(errors))
    assert curve.max_error == pytest.approx(max(errors))


def test_times_that_are_none_are_refused() -> None:
    with pytest.raises(BadInput, match="positive"):
        fit_curve([BatchTime(1, 1, 0.0)])


def test_batches_have_the_rows_and_sequences_that_they_claim() -> None:
    """A clock that the engine's passes move by a known curve: the fit must find it again."""
    seconds = 0.0
    seen = set()

    class Timed(Engine):
        def step(self, batch):  # type: ignore[no-untyped-def]
            nonlocal seconds
            works = batch.works
            assert all(work.start <= MAX_CONTEXT_TOKENS for work in works)
            if works and works[0].samples:
                seen.add((batch.num_rows, len({work.seq for work in works})))
            seconds += 0.03 + 0.004 * len(works) + 0.002 * batch.num_rows
            return super().step(batch)

    engine = Timed(NgramModel.from_text(num_sequences=8, context_length=512), max_rows=64)
    text = engine.tokenize("A radio cell has one server and many devices.", parse_special=False)
    times = measure_batches(engine, text, silent, clock=lambda: seconds)
    assert seen == set(batch_shapes(8)) == {(b.rows, b.sequences) for b in times}
    curve = fit_curve(times)
    found = (curve.fixed_s, curve.per_device_s, curve.per_token_s)
    assert found == pytest.approx((0.03, 0.004, 0.002), rel=1e-6)


@pytest.mark.parametrize("wrong", [0, 1, 2, 3, 7])
def test_the_walk_counts_what_a_drafter_of_known_errors_must_get(wrong: int) -> None:
    engine = new_engine()
    prompt = tokenize_prompt(engine, "The server verifies", chat=False)
    text = greedy_text(prompt, 60)
    (counted,) = walk_prompts(engine, Oracle(text, wrong), [prompt], sampling(), silent)
    position, judged, accepted = 0, 0, 0
    while position < 40:
        draft = range(position, min(position + 5, len(text)))
        right = next((i for i, at in enumerate(draft) if wrong and (at + 1) % wrong == 0), 5)
        judged += min(right + 1, 5)
        accepted += right
        position += right + 1
    assert (counted.num_judged, counted.stats.num_accepted_tokens) == (judged, accepted)
    assert counted.acceptance == accepted / judged
    assert counted.stats.num_committed_tokens == position


def test_nothing_to_propose_counts_as_rejected() -> None:
    engine = new_engine()
    prompt = tokenize_prompt(engine, "The server verifies", chat=False)
    (counted,) = walk_prompts(engine, Nothing([]), [prompt], sampling(), silent)
    assert (counted.num_empty, counted.num_judged, counted.acceptance) == (40, 0, 0.0)
    assert counted.draft_s_per_token == 0.0


def test_a_text_that_ends_is_not_drafted_past_its_end() -> None:
    engine = new_engine()
    end = engine.info.end_ids[0]
    prompt = tokenize_prompt(engine, default_prompts()[0], chat=False)
    drafter = Oracle([end] * 60)
    (counted,) = walk_prompts(engine, drafter, [prompt], sampling(), silent)
    assert len(counted.stats.drafted_at) == 1


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("draft", ["lookup", "ngram"])
def test_the_cell_is_one_that_plan_takes(draft: str, temperature: float) -> None:
    engine = new_engine()
    drafter = load_drafter(DrafterOptions(draft), engine)
    prompts = [tokenize_prompt(engine, text, chat=False) for text in default_prompts()[:2]]
    rule = "coupled" if temperature else "greedy"
    how = sampling(params=SamplingParams(temperature), rule=rule, max_tokens=16)
    profile = measure(engine, drafter, prompts, how, MACHINE, draft, silent)
    cell = parse_cell(cell_toml(profile, datetime(2026, 1, 2, tzinfo=UTC)))
    assert cell.names == (draft,)
    problem = cell.problem
    assert problem.acceptance[0] == pytest.approx(profile.overall.acceptance, rel=1e-5)
    assert problem.verify_fixed_s == pytest.approx(profile.curve.fixed_s, rel=1e-5)
    assert cell.curve and cell.curve.rows == sorted({batch.rows for batch in profile.batches})
    ones = [batch.seconds for batch in profile.batches if batch.rows == 1]
    assert cell.curve.seconds[0] == pytest.approx(np.median(ones), rel=1e-3)
    assert problem.bits_per_token[0] == 9 + 3  # an id and a level
    assert problem.bits_per_draft[0] == 592 + 8 * 21
    assert solve(problem).goodput_tokens_per_s > 0
    assert profile.report()["acceptance"] == profile.overall.acceptance


def test_prompts_that_do_not_fit_are_named() -> None:
    engine = new_engine()
    with pytest.raises(BadInput, match=r"prompt 2 = 500 tokens: .*--ctx-size"):
        check_prompts(engine, [np.zeros(3, np.int32), np.zeros(500, np.int32)], sampling())


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("qwen2.5-coder-0.5b", "qwen2.5-coder-0.5b"),
        ("/home/anna/models/a b.gguf", "a-b.gguf"),
        ("C:\\Users\\anna\\m.gguf", "m.gguf"),
        ('x"\n[server]\u007f', "x---server--"),
        ("", "model"),
    ],
)
def test_names_lose_their_folders_and_what_toml_cannot_quote(model: str, shown: str) -> None:
    assert shown_name(model) == shown
    profile = Profile(
        target=shown_name(model),
        draft=shown_name(model),
        machine=MACHINE,
        sampling=sampling(),
        vocabulary_size=300,
        batches=[BatchTime(1, 1, 0.1)],
        curve=fit_curve([BatchTime(1, 1, 0.1)]),
        by_prompt=[],
        overall=Agreement(),
    )
    cell = parse_cell(cell_toml(profile, datetime(2026, 1, 2, tzinfo=UTC)))
    assert cell.names == (shown,)
