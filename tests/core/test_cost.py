"""The cost model: its table, its time, and its texts."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from multispin.core.cost import CostEngine, Costs, RecordEngine, parse_costs
from multispin.core.engine import Batch, Copy, Engine, Outcome, emptied
from multispin.errors import BadInput
from multispin.lm.ngram import END_OF_TEXT
from multispin.types import SamplingParams
from tests.core.test_replay import altered, packed, work
from tests.recording import ids, new_engine, small_record


def costs(table: str) -> Costs:
    return parse_costs(f"[cost]\n{table}", "a.toml")


@pytest.mark.parametrize(
    ("table", "rows", "sequences", "expected"),
    [
        ("fixed_s = 0.03", 1000, 50, 0.03),
        ("fixed_s = 0.03\nper_row_s = 0.0002\nfree_rows = 148", 148, 8, 0.03),
        ("fixed_s = 0.03\nper_row_s = 0.0002\nfree_rows = 148", 160, 8, 0.0324),
        ("fixed_s = 0.01\nper_sequence_s = 0.002\nper_row_s = 0.001", 10, 3, 0.026),
        ("rows = [1, 2, 4]\nseconds = [0.07, 0.11, 0.13]", 1, 1, 0.07),
        ("rows = [1, 2, 4]\nseconds = [0.07, 0.11, 0.13]", 3, 1, 0.12),
        ("rows = [1, 2, 4]\nseconds = [0.07, 0.11, 0.13]", 14, 1, 0.23),
        ("rows = [4, 8]\nseconds = [0.1, 0.2]\nper_sequence_s = 0.01", 2, 2, 0.12),
        ("rows = [8]\nseconds = [0.2]", 100, 1, 0.2),
    ],
)
def test_a_pass_takes_what_the_table_says(
    table: str, rows: int, sequences: int, expected: float
) -> None:
    assert costs(table).pass_s(rows, sequences) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[cost]\nfixed = 1", "a.toml = [cost]: Object contains unknown field `fixed`"),
        ("[costs]", "a.toml = [cost]: Object contains unknown field `costs`"),
        ("", "a.toml = [cost]: Object missing required field `cost`"),
        ("[cost", "a.toml = (not TOML)"),
        ("[cost]\nfixed_s = -0.1", "a.toml: cost.fixed_s = -0.1: must be 0 or more"),
        ("[cost]\nfixed_s = inf", "a.toml: cost.fixed_s = inf"),
        ("[cost]\nper_row_s = nan", "a.toml: cost.per_row_s = nan"),
        ("[cost]\nfree_rows = -1", "a.toml: cost.free_rows = -1"),
        ("[cost]\nrows = [1, 2]\nseconds = [1]", "a.toml: cost.rows = [1, 2]"),
        ("[cost]\nrows = [2, 1]\nseconds = [1, 2]", "a.toml: cost.rows = [2, 1]"),
        ("[cost]\nrows = [0, 1]\nseconds = [1, 2]", "a.toml: cost.rows = [0, 1]"),
        ("[cost]\nseconds = [1, 2]", "a.toml: cost.rows = []"),
        ("[cost]\nrows = [1, 2]\nseconds = [-1, 2]", "a.toml: cost.seconds = [-1"),
        ("[cost]\nrows = [1, 2]\nseconds = [2, 1]", "a.toml: cost.seconds = [2"),
        ("[cost]\nfixed_s = 1\nrows = [1]\nseconds = [1]", "a.toml: cost.rows = [1]"),
    ],
)
def test_a_wrong_table_is_one_clear_line(text: str, message: str) -> None:
    with pytest.raises(BadInput) as raised:
        parse_costs(text, "a.toml")
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


class Time:
    """A clock that a sleep moves, late by a little, and that every look at moves too."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def clock(self) -> float:
        self.now += 0.001
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(seconds)
        self.now += seconds


def record_engine() -> RecordEngine:
    return RecordEngine(small_record(), num_sequences=4, context_length=512, max_rows=64)


def test_a_step_ends_when_the_pass_would_have() -> None:
    time = Time()
    prompt = ids(small_record().texts[0].prompt_ids).tolist()
    table = costs("fixed_s = 0.03\nper_sequence_s = 0.01\nper_row_s = 0.001")
    engine = CostEngine(record_engine(), table, "cost", clock=time.clock, sleep=time.sleep)
    result = engine.step(Batch([work(prompt, 0, 0, len(prompt))]))
    passed = 0.04 + 0.001 * len(prompt)
    assert result.forward_s == pytest.approx(passed, abs=0.002)
    # what the step itself took is not slept again
    assert time.slept == [pytest.approx(passed - 0.001)]


def test_a_pass_that_is_over_already_is_not_waited_for() -> None:
    time = Time()
    table = costs("fixed_s = 0.0005")
    engine = CostEngine(record_engine(), table, "cost", clock=time.clock, sleep=time.sleep)
    prompt = ids(small_record().texts[0].prompt_ids).tolist()
    engine.step(Batch([work(prompt, 0, 0, len(prompt))]))
    assert time.slept == []


def test_a_batch_without_rows_is_no_pass() -> None:
    time = Time()
    table = costs("fixed_s = 1")
    engine = CostEngine(record_engine(), table, "cost", clock=time.clock, sleep=time.sleep)
    engine.step(Batch([], [emptied(0)]))
    assert time.slept == []


def test_without_a_record_the_model_within_writes() -> None:
    prompt = ids(small_record().texts[0].prompt_ids).tolist()
    engine = CostEngine(new_engine(), costs(""), "cost")
    assert engine.info.target == "cost"
    [outcome] = engine.step(Batch([work(prompt, 0, 0, len(prompt))])).outcomes
    assert outcome.token == ids(small_record().texts[0].path)[0]


def test_a_record_judges_as_the_target_that_it_was_taken_from() -> None:
    """Chunks, drafts of any length, right to some place, sequences in turn."""
    for text in small_record().texts:
        engine, target = record_engine(), new_engine()
        prompt, path = ids(text.prompt_ids).tolist(), ids(text.path).tolist()
        position = 0
        for draft_length in (0, 3, 1, 7, 2, 5):
            for right in range(draft_length + 1):
                draft = [*path[position : position + right], *[200] * (draft_length - right)]
                if position + len(draft) >= len(path):
                    break
                # from the prompt's start each time, as though it were another sequence
                tokens = [*prompt, *path[:position], *draft]
                batch = Batch([work(tokens, 0, len(draft), len(prompt))], [emptied(0)])
                outcomes = engine.step(batch).outcomes
                assert outcomes == target.step(batch).outcomes
                position += outcomes[0].num_accepted + 1
        assert position > 20


@pytest.mark.parametrize("replayed", [True, False])
def test_a_copied_sequence_writes_the_same_text(replayed: bool) -> None:
    """Both engines that follow a record know what a copy holds."""
    record = altered(small_record(), 2, 200)  # a token that the model itself would not write
    engine: Engine | RecordEngine = new_engine(record=record)
    if not replayed:
        engine = RecordEngine(record, num_sequences=4, context_length=512, max_rows=64)
    prompt, path = ids(record.texts[0].prompt_ids).tolist(), ids(record.texts[0].path).tolist()
    engine.step(Batch([work([*prompt, *path[:2]], 0, 0, len(prompt))]))
    at = len(prompt) + 1
    again = replace(work([*prompt, *path[:2]], at, 0, len(prompt)), seq=1)
    [outcome] = engine.step(Batch([again], [Copy(0, 1, at)])).outcomes
    assert outcome == Outcome(0, 200)


def test_a_draft_may_run_over_the_end_of_a_text() -> None:
    """But not over the end of a path that was cut."""
    text = small_record().texts[0]
    prompt, path = ids(text.prompt_ids).tolist(), [*ids(text.path).tolist()[:4], END_OF_TEXT]
    for end, can in ((5, True), (4, False)):
        cut = replace(text, path=packed(*path[:end]))
        record = replace(small_record(), texts=[cut])
        engine = RecordEngine(record, num_sequences=1, context_length=512, max_rows=64)
        draft = [*path[:end], 65]
        [outcome] = engine.step(
            Batch([work([*prompt, *draft], 0, len(draft), len(prompt))])
        ).outcomes
        assert (outcome.failure is None) == can
        assert outcome.num_accepted == (5 if can else 0)


def test_what_is_not_on_the_record_fails_alone() -> None:
    engine = record_engine()
    prompt = ids(small_record().texts[0].prompt_ids).tolist()
    path = ids(small_record().texts[0].path).tolist()
    good = work(prompt, 0, 0, len(prompt))
    for bad in (
        work([65, 66, 67], 0, 0, 3),
        work([*prompt, *path], 0, 0, len(prompt)),
        work([*prompt, 200], 0, 0, len(prompt)),
        work(prompt, 0, 0, len(prompt), params=SamplingParams(0.5), rule="coupled"),
    ):
        failed, fine = engine.step(Batch([replace(bad, seq=1), good])).outcomes
        assert failed.failure is not None and "record" in failed.failure
        assert fine == Outcome(0, path[0])


def test_the_records_prompts_are_tokenized_and_no_others() -> None:
    engine = record_engine()
    for text in small_record().texts:
        assert engine.tokenize(text.prompt, False).tolist() == ids(text.prompt_ids).tolist()
    with pytest.raises(BadInput, match="is not in the target's record"):
        engine.tokenize("another", False)


def test_a_plain_text_is_tokenized_without_the_bos_that_the_server_adds() -> None:
    engine = RecordEngine(
        replace(small_record(), bos_id=84), num_sequences=1, context_length=64, max_rows=8
    )
    text = small_record().texts[0]
    whole = ids(text.prompt_ids).tolist()
    assert engine.tokenize(text.prompt, False).tolist() == whole[1:]
    assert engine.tokenize(text.prompt, True).tolist() == whole
