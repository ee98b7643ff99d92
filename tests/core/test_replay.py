"""A record in the place of a drafter, and of the target's own choice of tokens."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from multispin.core.drafter import Drafted, ModelDrafter, Sampler
from multispin.core.engine import Batch, Engine, Outcome, Work
from multispin.core.replay import ReplayDrafter, follow
from multispin.errors import BadInput
from multispin.lm.record import Record
from multispin.types import SamplingParams, TokenIds
from tests.recording import draft_model, ids, new_engine, small_record


def propose(drafter: ReplayDrafter | ModelDrafter, tokens: TokenIds, num_prompt: int) -> Drafted:
    return drafter.draft(0, tokens, 8, Sampler(num_prompt, SamplingParams(), "greedy", 0))


# --- the drafter --------------------------------------------------------------------------------


def test_from_every_place_on_the_path_and_behind_it_it_drafts_as_the_model_did() -> None:
    record = small_record()
    replay, model = ReplayDrafter(record), ModelDrafter(draft_model(1))
    num_off = 0
    for text in record.texts:
        prompt, path = ids(text.prompt_ids), ids(text.path)
        for i in range(len(path)):
            committed = np.concatenate([prompt, path[:i]])
            first = propose(model, committed, len(prompt)).ids
            # its own drafted tokens stand behind what is committed
            for num_drafted in range(min(len(first), 5, len(path) - i)):
                tokens = np.concatenate([committed, first[:num_drafted]])
                expected = propose(model, tokens, len(prompt))
                drafted = propose(replay, tokens, len(prompt))
                assert drafted.ids.tolist() == expected.ids.tolist()
                assert drafted.confidences == pytest.approx(expected.confidences, rel=1e-3)
                num_off += first[:num_drafted].tolist() != path[i : i + num_drafted].tolist()
    assert num_off > 20


def test_off_the_path_by_other_tokens_it_goes_on_from_the_last_position_on_it() -> None:
    record = small_record()
    text = record.texts[0]
    prompt, path = ids(text.prompt_ids), ids(text.path)
    row = ids(text.drafts).reshape(-1, record.depth)[4]
    others = (np.concatenate([path[4:5], row[1:2]]) + 1) % 256
    tokens = np.concatenate([prompt, path[:4], others]).astype(np.int32)
    assert propose(ReplayDrafter(record), tokens, len(prompt)).ids.tolist() == row[2:10].tolist()


def test_there_is_nothing_beyond_what_was_recorded() -> None:
    record = small_record()
    text = record.texts[0]
    whole = np.concatenate([ids(text.prompt_ids), ids(text.path)])
    num_prompt = len(ids(text.prompt_ids))
    replay = ReplayDrafter(record)
    assert len(propose(replay, whole, num_prompt).ids) == 0
    wrong = (whole[num_prompt] + 1) % 256
    far_off = np.concatenate([whole[:num_prompt], np.full(record.depth - 3, wrong, np.int32)])
    assert len(propose(replay, far_off, num_prompt).ids) == 3
    farther = np.concatenate([far_off, np.full(50, wrong, np.int32)])
    assert len(propose(replay, farther, num_prompt).ids) == 0


def test_what_a_record_cannot_know_is_refused() -> None:
    replay = ReplayDrafter(small_record())
    with pytest.raises(BadInput, match="prompt = 3 tokens: is not in the record"):
        propose(replay, np.array([1, 2, 3], np.int32), 3)
    with pytest.raises(BadInput, match=r"temperature = 0\.5"):
        replay.draft(0, np.array([1], np.int32), 4, Sampler(1, SamplingParams(0.5), "coupled", 0))


# --- the engine ---------------------------------------------------------------------------------


def packed(*tokens: int) -> bytes:
    return np.array(tokens, "<i4").tobytes()


@pytest.mark.parametrize(
    ("draft", "expected"),
    [
        ((), (0, 7)),
        ((7,), (1, 8)),
        ((7, 8), (2, 9)),
        ((7, 5, 9), (1, 8)),
        ((5, 8, 9), (0, 7)),
        ((7, 8, 9), (3, None)),
        ((7, 8, 9, 1), (3, None)),
    ],
)
def test_a_draft_is_accepted_as_far_as_it_follows_the_path(
    draft: tuple[int, ...], expected: tuple[int, int | None]
) -> None:
    assert follow(packed(*draft), packed(7, 8, 9)) == expected


def work(tokens: list[int], start: int, num_draft: int, num_prompt: int, **changes: object) -> Work:
    data = packed(*tokens[start:])
    fields = {"params": SamplingParams(), "rule": "greedy", "seed": 0, "samples": True}
    return Work(0, start, data, num_draft, num_prompt=num_prompt, **{**fields, **changes})  # type: ignore[arg-type]


def altered(record: Record, at: int, token: int) -> Record:
    """The first text as though the target had chosen another token at one place."""
    path = ids(record.texts[0].path).copy()
    path[at] = token
    return replace(record, texts=[replace(record.texts[0], path=path.tobytes())])


def written(engine: Engine, prompt: list[int], draft_length: int, num_tokens: int) -> list[int]:
    """A whole text with drafts of the weaker model; the differences are kept in the function."""
    drafter = ModelDrafter(draft_model(1))
    text = list(prompt)
    start, num_differences = 0, 0
    while len(text) < len(prompt) + num_tokens:
        length = min(draft_length, len(prompt) + num_tokens - len(text) - 1)
        tokens = np.array(text, np.int32)
        drafted = drafter.draft(
            0, tokens, length, Sampler(len(prompt), SamplingParams(), "greedy", 0)
        ).ids
        one = work([*text, *drafted.tolist()], start, len(drafted), len(prompt))
        result = engine.step(Batch([one]))
        [outcome] = result.outcomes
        text += [*drafted[: outcome.num_accepted].tolist(), outcome.token]
        start = len(text) - 1
        num_differences += result.num_replay_differences
    written.num_differences = num_differences  # type: ignore[attr-defined]
    return text[len(prompt) :]


@pytest.mark.parametrize("draft_length", [0, 1, 5])
def test_an_engine_with_a_record_writes_its_path_and_counts_where_it_would_not_have(
    draft_length: int,
) -> None:
    record = small_record()
    prompt, path = ids(record.texts[0].prompt_ids).tolist(), ids(record.texts[0].path).tolist()
    agreeing = new_engine(record=record)
    assert written(agreeing, prompt, draft_length, len(path)) == path
    assert written.num_differences == 0  # type: ignore[attr-defined]

    for at in (0, 7, len(path) - 1):
        other = altered(record, at, 200)  # a byte that is no text: nobody would choose it
        differing = new_engine(record=other)
        expected = [*path[:at], 200, *path[at + 1 :]]
        assert written(differing, prompt, draft_length, len(path)) == expected
        # at the altered token, and perhaps at those that have it in sight
        assert 1 <= written.num_differences <= 4  # type: ignore[attr-defined]


@pytest.mark.parametrize("num_right", [5, 6, 8])
def test_beyond_the_paths_end_a_draft_is_judged_by_the_logits(num_right: int) -> None:
    record = small_record()
    prompt, path = ids(record.texts[0].prompt_ids).tolist(), ids(record.texts[0].path).tolist()
    draft = [*path[:num_right], *[200] * (8 - num_right)]
    for first, num_differences in ((path[0], 0), (201, 1)):
        recorded = packed(first, *path[1:5])
        short = replace(record, texts=[replace(record.texts[0], path=recorded)])
        one = work([*prompt, first, *draft[1:]], 0, 8, len(prompt))
        result = new_engine(record=short).step(Batch([one]))
        assert result.outcomes == [Outcome(num_right, path[num_right])]
        assert result.num_replay_differences == num_differences


@pytest.mark.parametrize(
    "changes",
    [
        {"params": SamplingParams(0.8), "rule": "coupled"},
        {"params": SamplingParams(logit_bias={65: 50.0})},
        {"params": SamplingParams(presence_penalty=1.0)},
    ],
)
def test_what_is_not_as_recorded_is_judged_by_the_logits(changes: dict[str, object]) -> None:
    record = altered(small_record(), 0, 200)
    prompt = ids(record.texts[0].prompt_ids).tolist()
    batch = Batch([work(prompt, 0, 0, len(prompt), **changes)])
    result = new_engine(record=record).step(batch)
    assert result == replace(new_engine().step(batch), forward_s=result.forward_s)


def test_other_texts_and_texts_past_their_end_are_judged_by_the_logits() -> None:
    record = altered(small_record(), 39, 200)
    prompt, path = ids(record.texts[0].prompt_ids).tolist(), ids(record.texts[0].path).tolist()
    for tokens, num_prompt in (([65, 66], 2), ([*prompt, *path], len(prompt)), ([*prompt, 9], 32)):
        batch = Batch([work(tokens, 0, 0, num_prompt)])
        result = new_engine(record=record).step(batch)
        assert result == replace(new_engine().step(batch), forward_s=result.forward_s)
