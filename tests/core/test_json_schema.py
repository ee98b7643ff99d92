"""Texts that follow a JSON Schema: the same with and without drafting, whatever happens."""

from __future__ import annotations

import json
import random
from functools import cache

import msgspec
import pytest

from multispin.core.batch import BatchLimits
from multispin.core.cost import CostEngine, Costs, RecordEngine
from multispin.core.engine import Engine
from multispin.errors import BadInput
from multispin.lm.ngram import NgramModel
from multispin.lm.record import Record
from multispin.types import AcceptanceRule
from multispin.wire import frames
from multispin.wire.frames import Error, Open
from tests.core.harness import (
    PROMPT,
    FakeClock,
    Writer,
    new_drafter,
    new_engine,
    new_server,
    request,
    run,
    write,
)
from tests.core.test_window import chaos, drafter, window_server
from tests.recording import PROMPTS, small_record

READING = json.dumps(
    {
        "type": "object",
        "properties": {
            "sensor": {"type": "string", "maxLength": 8},
            "value": {"type": "integer", "minimum": -40, "maximum": 60},
            "flags": {"type": "array", "items": {"enum": ["old", "raw"]}, "maxItems": 2},
        },
        "required": ["sensor", "value", "flags"],
        "additionalProperties": False,
    }
)
ANYTHING = "{}"
RULES: list[tuple[AcceptanceRule, dict[str, float]]] = [
    ("greedy", {"temperature": 0.0}),
    ("coupled", {"temperature": 0.8}),
    ("coupled", {"temperature": 1.0, "top_p": 0.9, "top_k": 12, "min_p": 0.01}),
    ("coupled", {"temperature": 0.9, "repetition_penalty": 1.1, "frequency_penalty": 0.2}),
    ("rejection", {"temperature": 0.8}),
    ("rejection", {"temperature": 0.8, "top_p": 0.9}),
]


def wanted(session: int = 0, *, schema: str = READING, **fields: object) -> Open:
    fields.setdefault("max_tokens", 250)
    return msgspec.structs.replace(request(session, **fields), json_schema=schema)  # type: ignore[arg-type]


def alone(message: Open) -> list[int]:
    return _alone(frames.encode(message))


@cache
def _alone(message: bytes) -> list[int]:
    return write(frames.decode_from_device(message), "none").session.committed


def check(writer: Writer) -> bool:
    """Whether the text ended by itself; if so it is what the schema describes."""
    if writer.session.finish != "stop":
        return False
    value = json.loads(writer.text)
    assert list(value) == ["sensor", "value", "flags"]
    assert isinstance(value["sensor"], str)
    assert len(value["sensor"]) <= 8
    assert isinstance(value["value"], int)
    assert -40 <= value["value"] <= 60
    assert set(value["flags"]) <= {"old", "raw"}
    assert len(value["flags"]) <= 2
    return True


@pytest.mark.parametrize(("rule", "params"), RULES)
def test_a_text_that_stops_is_what_the_schema_describes(
    rule: AcceptanceRule, params: dict[str, float]
) -> None:
    num_stopped = 0
    for seed in range(4):
        message = wanted(rule=rule, seed=seed, draft_length=6, **params)
        for kind in ("none", "weaker", "same"):
            writer = write(message, kind)
            num_stopped += check(writer)
            if rule != "rejection":
                assert writer.session.committed == alone(message)
    assert num_stopped >= 6


@pytest.mark.parametrize("kind", ["mixed", "weaker", "storm"])
def test_rollback_storms_do_not_change_the_text(kind: str) -> None:
    for seed in range(3):
        harness = window_server()
        messages = [
            wanted(i, seed=seed + i, draft_length=16, schema=[READING, ANYTHING][i % 2])
            for i in range(4)
        ]
        writers = [Writer(harness, m, drafter(kind), str(i)) for i, m in enumerate(messages)]
        chaos(harness, writers, seed)
        for writer, message in zip(writers, messages, strict=True):
            assert writer.session.committed == alone(message)


def test_a_schema_is_nobody_elses_business() -> None:
    """Free texts and schemas side by side, over fewer sequences than texts, and crashes."""
    for seed in range(2):
        rng = random.Random(seed)
        harness = new_server(new_engine(3, 1024))
        schemas = ["", READING, ANYTHING]
        messages = [
            wanted(i, seed=seed, max_tokens=60, schema=schemas[i % 3], prompt=PROMPT * (1 + i % 2))
            for i in range(9)
        ]
        kinds = ["none", "weaker", "same"]
        writers = [
            Writer(harness, m, new_drafter(rng.choice(kinds)), str(i))
            for i, m in enumerate(messages)
        ]
        by_link = {writer.link: writer for writer in writers}
        num_crashes = 0
        while not all(writer.session.finish for writer in writers):
            for writer in writers:
                if rng.random() < 0.5:
                    writer.act()
            sound = not any(s.num_crashes for s in harness.core._sessions.values())
            if sound and rng.random() < 0.05 and harness.core.next_batch() is not None:
                harness.engine = new_engine(3, 1024)
                assert harness.core.engine_lost() == []
                num_crashes += 1
                continue
            for link, frame in harness.step() or []:
                assert not isinstance(frame, Error), frame
                by_link[link].take(frame)
        assert num_crashes
        for writer, message in zip(writers, messages, strict=True):
            assert writer.session.committed == alone(message)


def test_a_forbidden_draft_token_is_rejected_and_a_good_one_is_not() -> None:
    message = wanted(temperature=0.0, rule="greedy", draft_length=6)
    stats = write(message, "same").session.stats
    # A drafter that knows of no schema: right within the names, wrong where the schema decides.
    assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens


def test_several_answers_to_one_prompt_at_once() -> None:
    """Copied sequences do not inherit how far the other text had come."""
    harness = new_server(batch=BatchLimits(mode="stop-and-wait", max_rows=24))
    messages = [wanted(i, prompt=PROMPT * 2, seed=i) for i in range(6)]
    writers = [Writer(harness, m, new_drafter("weaker"), str(i)) for i, m in enumerate(messages)]
    run(harness, writers)
    for writer, message in zip(writers, messages, strict=True):
        assert writer.session.committed == alone(message)


def test_a_schema_that_cannot_be_compiled_ends_its_text_alone() -> None:
    """If nobody tried it before: net/server.py does."""
    harness = new_server()
    bad = Writer(harness, wanted(0, schema='{"type":"strin"}'), None, "bad")
    good = Writer(harness, wanted(1), None, "good")
    errors = []
    while good.session.finish is None:
        for link, frame in harness.step() or []:
            if isinstance(frame, Error):
                errors.append((link, frame.message))
            else:
                good.take(frame)
    [(link, message)] = errors
    assert link == "bad"
    assert "Invalid type: strin" in message
    assert bad.session.committed == []
    assert good.session.committed == alone(wanted(1))


@pytest.mark.parametrize("fields", [{"json_schema": "{}"}, {"num_logprobs": 0}])
def test_a_target_without_logits_says_so(fields: dict[str, object]) -> None:
    record = Record("f", "recorded", "d", "0", b"a", bytes(24), [0], None, None, {}, 1, 0.0, [])
    engine = RecordEngine(record, num_sequences=2, context_length=64, max_rows=8)
    for target in (engine, CostEngine(engine, Costs(fixed_s=1.0), "cost:x")):
        core = new_server(target).core  # type: ignore[arg-type]
        core.connect("link", 1.0)
        message = msgspec.structs.replace(request(), **fields)
        with pytest.raises(BadInput, match=f"{next(iter(fields))} = .* no logits"):
            core.check_open("link", message)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"json_schema": '"' + "x" * 65_536 + '"'}, "json_schema"),
        ({"num_logprobs": 21}, "num_logprobs"),
        ({"num_logprobs": -2}, "num_logprobs"),
        ({"tools": "x" * 64 * 600}, "prompt"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(fields: dict[str, object], named: str) -> None:
    core = new_server().core
    core.connect("link", 1.0)
    with pytest.raises(BadInput, match=f"^{named} = "):
        core.check_open("link", msgspec.structs.replace(request(), **fields))


def test_a_recorded_path_does_not_overrule_a_schema() -> None:
    assert PROMPT in PROMPTS
    message = wanted(temperature=0.0, rule="greedy", max_tokens=40)
    model = NgramModel.from_text(num_sequences=3, context_length=512)
    engine = Engine(model, max_rows=64, record=small_record(), clock=FakeClock())
    assert write(message, "none", engine=engine).session.committed == alone(message)
