"""Recording: the same as the target and the drafter would have done one at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from multispin.bench.record import DEPTH, PathReader, Prompt, record_texts, write_paths
from multispin.core.drafter import ModelDrafter, Sampler
from multispin.errors import BadInput
from multispin.lm.ngram import END_OF_TEXT, NgramModel
from multispin.lm.record import NO_TOKEN, Record, RecordedText, read_record, write_record
from multispin.types import SamplingParams, TokenIds
from tests.recording import MAX_TOKENS, PROMPTS, draft_model, ids, new_engine, small_record


def continuation(model: NgramModel, text: TokenIds, length: int) -> tuple[TokenIds, np.ndarray]:
    """By another way: token by token, alone."""
    drafter = ModelDrafter(model)
    drafted = drafter.draft(0, text, length, Sampler(len(text), SamplingParams(), "greedy", 0))
    drafter.free(0)
    return drafted.ids, drafted.confidences


def test_a_path_is_the_targets_own_text() -> None:
    engine = new_engine(num_sequences=2)  # fewer than texts
    prompts = [engine.tokenize(text, parse_special=False) for text in PROMPTS]
    paths = write_paths(engine, prompts, MAX_TOKENS, lambda line: None)
    target = NgramModel.from_text(num_sequences=1)
    for prompt, path in zip(prompts, paths, strict=True):
        assert path.tolist() == continuation(target, prompt, MAX_TOKENS)[0].tolist()


def test_every_row_is_what_the_drafter_would_have_drafted_there() -> None:
    record = small_record()
    model = draft_model(1)
    num_off = 0
    for text in record.texts:
        prompt, path = ids(text.prompt_ids), ids(text.path)
        drafts = ids(text.drafts).reshape(-1, DEPTH)
        confidences = np.frombuffer(text.confidences, "<f2").reshape(-1, DEPTH)
        for i in range(len(path)):
            expected, sureness = continuation(model, np.concatenate([prompt, path[:i]]), DEPTH)
            num = len(expected)
            assert drafts[i, :num].tolist() == expected.tolist()
            assert (drafts[i, num:] == NO_TOKEN).all()
            assert confidences[i, :num] == pytest.approx(sureness, rel=1e-3)
            num_off += int(expected[0] != path[i])
    assert num_off > 0  # both kinds of rows were there
    assert record.agreement == pytest.approx(1 - num_off / record.num_tokens)


def test_nothing_follows_an_end_token() -> None:
    # After 'x' this model ends the text; after anything else it has seen only 'x'.
    model = NgramModel.from_text("abx\n\n\nabx", order=2, num_sequences=3)
    prompt = np.frombuffer(b"a", np.uint8).astype(np.int32)
    path = np.array([*b"bx", END_OF_TEXT], np.int32)
    drafts = PathReader(model, frozenset({END_OF_TEXT})).drafts(prompt, path)
    for i in range(3):
        assert drafts.ids[i, : 3 - i].tolist() == path[i:].tolist()
        assert (drafts.ids[i, 3 - i :] == NO_TOKEN).all()
        assert (drafts.confidences[i, 3 - i :] == 0).all()


def test_a_prompt_that_occurs_twice_is_recorded_once() -> None:
    assert len(small_record((PROMPTS[0], "A", PROMPTS[0])).texts) == 2


def test_prompts_that_do_not_fit_are_refused_before_anything_is_computed() -> None:
    engine = new_engine()
    prompt = Prompt("long", np.zeros(500, np.int32))
    with pytest.raises(BadInput, match="prompt 1 = 500 tokens: must have 1 to"):
        record_texts(engine, draft_model(), "weaker", [prompt], MAX_TOKENS, lambda line: None)


def test_a_file_gives_the_record_back(tmp_path: Path) -> None:
    record = small_record()
    write_record(tmp_path / "a.record", record)
    assert read_record(tmp_path / "a.record", "--draft") == record
    assert [path.name for path in tmp_path.iterdir()] == ["a.record"]


OUTSIDE = np.array([257], "<i4").tobytes()  # no token of the n-gram model


@pytest.mark.parametrize(
    "damage",
    [
        lambda record, text: replace(record, format="multispin record 0"),
        lambda record, text: replace(record, depth=0),
        lambda record, text: with_text(record, drafts=text.drafts[:-4]),
        lambda record, text: with_text(record, confidences=text.confidences[2:]),
        lambda record, text: with_text(record, path=text.path[:-1]),
        lambda record, text: with_text(record, prompt_ids=b""),
        lambda record, text: with_text(record, path=OUTSIDE + text.path[4:]),
        lambda record, text: with_text(record, drafts=OUTSIDE + text.drafts[4:]),
    ],
)
def test_a_damaged_record_is_refused(
    damage: Callable[[Record, RecordedText], Record], tmp_path: Path
) -> None:
    record = small_record()
    write_record(tmp_path / "a.record", damage(record, record.texts[0]))
    with pytest.raises(BadInput, match=r"--draft = .*a.record: is no record of this version"):
        read_record(tmp_path / "a.record", "--draft")


def with_text(record: Record, **changes: bytes) -> Record:
    return replace(record, texts=[replace(record.texts[0], **changes)])


def test_a_file_that_is_no_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"not MessagePack")
    with pytest.raises(BadInput, match="is no record"):
        read_record(tmp_path / "a", "--draft")
    with pytest.raises(BadInput, match="cannot be read"):
        read_record(tmp_path / "b", "--draft")
