"""What a schema lets stand: masks over hand-made logits, walked at random."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from multispin.errors import BadInput, MultispinError
from multispin.lm.base import Vocabulary
from multispin.lm.grammar import MAX_ROW_S, MAX_START_S, Grammars
from multispin.lm.json_grammar import compile_schema, tokenizer_of
from multispin.types import TokenIds

PERSON = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "colours": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
        },
        "required": ["name", "age", "colours"],
        "additionalProperties": False,
    }
)
# Several bytes, parts of a character, two that end a text (one with bytes), one without bytes.
PIECES = [
    *(bytes([byte]) for byte in range(256)),
    *(
        b'{"',
        b'"name"',
        b'": "',
        b'", "',
        b'"}',
        b'"age":',
        b"red",
        b"green",
        b"]}",
        b"\n  ",
        b"12",
    ),
    *("é".encode(), "😀".encode()[:2], "😀".encode()[2:], b"  ", b"\n\n"),
    b"",
    b"</s>",
    b"",
]
END, WRITTEN_END, BLANK = len(PIECES) - 3, len(PIECES) - 2, len(PIECES) - 1
NOTHING = np.zeros(0, np.int32)


def vocabulary() -> Vocabulary:
    offsets = np.cumsum([0, *map(len, PIECES)])
    return Vocabulary(b"".join(PIECES), offsets, frozenset({END, WRITTEN_END}))


def mask(grammars: Grammars, seq: int, schema: str, text: TokenIds) -> np.ndarray:
    row = np.zeros((1, len(PIECES)), np.float32)
    grammars.constrain(seq, schema, text, NOTHING, row)
    return row[0] == 0


def walk(
    schema: str, logits_of: Callable[[np.ndarray], np.ndarray], most: int = 400
) -> tuple[TokenIds, bool]:
    """The tokens that these logits choose under a schema, and whether the text ended."""
    grammars, text = Grammars(vocabulary()), NOTHING
    for _ in range(most):
        row = logits_of(text)[None].astype(np.float32)
        grammars.constrain(0, schema, text, NOTHING, row)
        token = int(row.argmax())
        if token in (END, WRITTEN_END):
            return text, True
        text = np.append(text, np.int32(token))
    return text, False


def noisy(seed: int) -> Callable[[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    return lambda text: rng.normal(size=len(PIECES))


def test_whatever_the_logits_a_finished_text_is_what_the_schema_describes() -> None:
    num_finished = 0
    for seed in range(60):
        ids, finished = walk(PERSON, noisy(seed))
        if not finished:
            continue
        num_finished += 1
        value = json.loads(vocabulary().decode(ids))
        assert list(value) == ["name", "age", "colours"]
        assert isinstance(value["name"], str)
        assert len(value["name"]) <= 12
        assert isinstance(value["age"], int)
        assert 0 <= value["age"] <= 150
        assert set(value["colours"]) <= {"red", "green"}
        assert len(value["colours"]) <= 3
    assert num_finished >= 30


def test_every_beginning_of_a_text_is_accepted_and_only_the_whole_may_end() -> None:
    grammars = Grammars(vocabulary())
    for seed in range(10):
        ids, finished = walk(PERSON, noisy(seed))
        for length in range(len(ids)):
            allowed = mask(grammars, 0, PERSON, ids[:length])
            assert allowed[ids[length]]
            assert not allowed[END]
            assert not allowed[WRITTEN_END]  # not even in a string, as five characters
            assert not allowed[BLANK]
        if finished:
            allowed = mask(grammars, 0, PERSON, ids)
            assert allowed[[END, WRITTEN_END]].all()
            assert allowed.sum() == 2


def test_a_mask_depends_on_the_schema_and_the_text_alone() -> None:
    """Rollbacks, jumps between texts and schemas on any sequence, against a matcher of its own."""
    rng = np.random.default_rng(3)
    schemas = [PERSON, "{}", '{"type":"array","items":{"type":"string"}}']
    texts = [[walk(schema, noisy(seed), 60)[0] for seed in range(3)] for schema in schemas]
    kept = Grammars(vocabulary())
    for _ in range(120):
        which = int(rng.integers(len(schemas)))
        ids = texts[which][rng.integers(3)]
        begin = int(rng.integers(len(ids) + 1))
        end = int(rng.integers(begin, min(begin + 8, len(ids)) + 1))
        draft = ids[begin:end].copy()
        if len(draft) and rng.random() < 0.5:
            draft[rng.integers(len(draft))] = rng.integers(len(PIECES))  # somebody else's idea
        logits = rng.normal(size=(len(draft) + 1, len(PIECES))).astype(np.float32)
        masked = logits.copy()
        kept.constrain(int(rng.integers(3)), schemas[which], ids[:begin], draft, masked)
        alone = logits.copy()
        Grammars(vocabulary()).constrain(0, schemas[which], ids[:begin], draft, alone)
        assert np.array_equal(masked, alone)
        is_open = True
        for j, row in enumerate(masked):
            if not is_open:
                assert np.array_equal(row, logits[j])  # behind what will be rejected
                continue
            allowed = mask(Grammars(vocabulary()), 0, schemas[which], ids_of(ids, begin, draft, j))
            assert np.array_equal(row, np.where(allowed, logits[j], -np.inf))
            is_open = j < len(draft) and bool(allowed[draft[j]]) and int(draft[j]) < END


def ids_of(ids: TokenIds, begin: int, draft: TokenIds, j: int) -> TokenIds:
    return np.concatenate([ids[:begin], draft[:j]])


def test_white_space_cannot_go_on_for_ever() -> None:
    def spacious(text: np.ndarray) -> np.ndarray:
        logits = np.random.default_rng(len(text)).normal(size=len(PIECES))
        for token, piece in enumerate(PIECES):
            logits[token] += 50.0 * piece.isspace()
        return logits

    schema = '{"type":"object","properties":{"n":{"enum":[1,2]}},"required":["n"],' + (
        '"additionalProperties":false}'
    )
    ids, finished = walk(schema, spacious)
    assert finished
    assert json.loads(vocabulary().decode(ids))["n"] in (1, 2)


def test_a_text_that_the_schema_has_not_led_to_is_an_error() -> None:
    with pytest.raises(MultispinError, match="does not follow"):
        mask(Grammars(vocabulary()), 0, PERSON, np.frombuffer(b"[1", np.uint8).astype(np.int32))


def test_a_schema_that_is_too_slow_to_follow_ends_its_text() -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 20 * MAX_ROW_S
        return now

    grammars = Grammars(vocabulary(), clock)
    with pytest.raises(MultispinError, match="too long"):
        for _ in range(int(MAX_START_S / MAX_ROW_S)):
            mask(grammars, 0, PERSON, NOTHING)


def test_every_text_begins_with_a_matcher_and_a_budget_of_its_own() -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.6 * MAX_START_S
        return now

    grammars = Grammars(vocabulary(), clock)
    brace = np.frombuffer(b"{", np.uint8).astype(np.int32)
    mask(grammars, 0, PERSON, brace)
    mask(grammars, 0, PERSON, NOTHING)
    with pytest.raises(MultispinError, match="too long"):
        mask(grammars, 0, PERSON, brace)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("{", "is not JSON"),
        ("[" * 5000, "is not JSON"),
        ("[1]", "must be a JSON object"),
        ("false", "must be a JSON object"),
        ('{"type":"strin"}', "Invalid type: strin"),
        ('{"not":{"type":"string"}}', "Unimplemented keys"),
        ('{"$ref":"#"}', "no value satisfies it"),
        ('{"$ref":"https://example.com/schema"}', "not present"),
        ('{"type":"string","pattern":"(?=a)b"}', "look-around"),
        ('{"type":"integer","minimum":2,"maximum":1}', "Unsatisfiable"),
        ('{"a":' * 200 + "1" + "}" * 200, "recursion limit"),
    ],
)
def test_what_is_no_schema_is_refused_with_its_reason(schema: str, reason: str) -> None:
    with pytest.raises(BadInput, match=reason) as caught:
        compile_schema(schema, tokenizer_of(PIECES, [END]))
    assert caught.value.field == "json_schema"
    assert "\n" not in str(caught.value)


def test_a_schema_cannot_change_how_it_is_enforced() -> None:
    lenient = '{"type":"string","not":{},"x-guidance":{"lenient":true}}'
    with pytest.raises(BadInput, match="Unimplemented"):
        compile_schema(lenient, tokenizer_of(PIECES, [END]))


def test_a_vocabulary_without_an_end_is_refused() -> None:
    endless = Vocabulary(b"ab", np.array([0, 1, 2]), frozenset())
    Grammars(endless).prepare()
    with pytest.raises(BadInput, match="ends a text"):
        Grammars(endless).constrain(0, "{}", NOTHING, NOTHING, np.zeros((1, 2), np.float32))
