"""Record, replay and cost models as a person runs them: the n-gram model, processes, sockets."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from multispin.cli.prompts import human_eval, read_prompts
from multispin.errors import BadInput
from multispin.lm.record import read_record, write_record
from tests.cli.test_commands import MULTISPIN, run
from tests.core.test_replay import altered
from tests.recording import ids

PROMPTS = ["The phone drafts and the server ", "Every token "]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record, and a cost model beside it."""
    folder = tmp_path_factory.mktemp("record")
    (folder / "prompts.jsonl").write_text(
        "\n".join(json.dumps({"turns": [prompt, "more"]}) for prompt in PROMPTS)
    )
    done = run(
        *("record", "--target", "ngram", "--draft", "ngram", "--max-tokens", "24"),
        *("--prompts", str(folder / "prompts.jsonl"), "--out", str(folder / "a.record")),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and "2 texts, 48 tokens" in done.stderr
    (folder / "a.toml").write_text('[cost]\nfixed_s = 0.001\nrecord = "a.record"\n')
    return folder


def serve(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [*MULTISPIN, "serve", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.fixture(scope="module")
def cost_server(folder: Path) -> Iterator[str]:
    # stop-and-wait: in a window, a target as quick as this one leaves no time to draft
    process, address = serve(
        *("--target", f"cost:{folder / 'a.toml'}", "--max-sessions", "300"),
        *("--mode", "stop-and-wait"),
    )
    try:
        yield address
    finally:
        process.kill()
        process.communicate()


def complete(server: str, prompt: str, draft: str, *arguments: str) -> dict:
    done = run("complete", prompt, "--server", server, "--draft", draft, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("draft", ["replay", "lookup", "none"])
def test_a_cost_model_writes_the_recorded_texts(folder: Path, cost_server: str, draft: str) -> None:
    record = read_record(folder / "a.record", "")
    drafter = f"replay:{folder / 'a.record'}" if draft == "replay" else draft
    for prompt, text in zip(PROMPTS, record.texts, strict=True):
        result = complete(cost_server, prompt, drafter, "--max-tokens", "24")
        assert result["token_ids"] == ids(text.path).tolist()
        assert result["text"].encode() == record.vocabulary().decode(ids(text.path))
        drafted = result["speculation"]["num_draft_tokens"]
        assert (drafted > 0) == (draft != "none")
        if draft == "replay":
            assert result["speculation"]["num_accepted_tokens"] > 0


@pytest.mark.parametrize(
    ("prompt", "arguments", "message"),
    [
        ("Another", (), "text = 'Another': is not in the target's record"),
        (PROMPTS[0], ("--max-tokens", "30"), "the record does not say how this text goes on"),
        (PROMPTS[0], ("--temperature", "1"), "the record does not say how this text goes on"),
    ],
)
def test_what_the_record_lacks_fails_alone(
    cost_server: str, prompt: str, arguments: tuple[str, ...], message: str
) -> None:
    done = run("complete", prompt, "--server", cost_server, "--draft", "lookup", *arguments)
    assert done.returncode != 0 and message in done.stderr
    complete(cost_server, PROMPTS[1], "lookup", "--max-tokens", "8")


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[cost]\nfixed = 1", "Object contains unknown field `fixed`"),
        ("[cost]\nfixed_s = -1", "cost.fixed_s = -1.0: must be 0 or more"),
        ('[cost]\nrecord = "none.record"', "cost.record = "),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_wrong_cost_model_is_one_line(tmp_path: Path, toml: str | None, message: str) -> None:
    if toml is not None:
        (tmp_path / "a.toml").write_text(toml)
    done = run("serve", "--target", f"cost:{tmp_path / 'a.toml'}", "--port", "0")
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr.splitlines()[-1]


def test_a_server_with_a_record_follows_it_and_tells_how_often_it_would_not_have(
    folder: Path, tmp_path: Path
) -> None:
    record = altered(read_record(folder / "a.record", ""), 5, 200)
    write_record(tmp_path / "b.record", record)
    process, address = serve("--target", "ngram", "--replay", str(tmp_path / "b.record"))
    try:
        replayed = complete(address, PROMPTS[0], "none", "--max-tokens", "12")
        assert replayed["token_ids"] == ids(record.texts[0].path).tolist()[:12]
        complete(address, "Another text ", "none", "--max-tokens", "12")
    finally:
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=20)
    last = stderr.splitlines()[-1]
    assert last.startswith("replayed: ") and last.endswith(", 24 tokens were committed")
    assert 1 <= int(last.split()[1]) <= 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--draft", "lookup"], "--draft = lookup: takes no time"),
        (["--draft", "replay:a"], "--draft = replay:a: takes no time"),
        (["--out", "no/such/a.record"], "--out = no/such/a.record: there is no folder"),
        (["--human-eval", "0"], "--human-eval = 0: must be 1 to 164"),
        (["--human-eval", "3", "--prompts", "x"], "--human-eval = 3: give it or --prompts"),
        (["--max-tokens", "0"], "--max-tokens = 0"),
        (["--ctx-size", "5"], "--ctx-size = 5"),
    ],
)
def test_what_cannot_be_recorded_is_refused(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    base = ["--target", "ngram", "--draft", "ngram", "--out", str(tmp_path / "a.record")]
    done = run("record", *base, *arguments)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []


def test_a_record_is_not_written_over(folder: Path) -> None:
    out = folder / "a.record"
    done = run("record", "--target", "ngram", "--draft", "ngram", "--out", str(out))
    assert done.returncode == 2 and "exists already" in done.stderr


def test_serve_refuses_a_record_that_does_not_fit(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "b.record"
    record = read_record(folder / "a.record", "")
    write_record(path, type(record)(**{**_fields(record), "fingerprint": "0"}))
    done = run("serve", "--target", "ngram", "--port", "0", "--replay", str(path))
    assert done.returncode == 2 and "whose vocabulary differs" in done.stderr
    done = run("serve", "--target", f"cost:{folder / 'a.toml'}", "--replay", str(path))
    assert done.returncode == 2 and "a cost model names its record itself" in done.stderr


def _fields(record: object) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__struct_fields__}  # type: ignore[attr-defined]


def test_prompt_files(tmp_path: Path) -> None:
    lines = [{"prompt": "a", "task_id": 1}, {"turns": ["b", "c"]}]
    jsonl = tmp_path / "a.jsonl"
    jsonl.write_text("\n".join(json.dumps(line) for line in lines))
    assert list(read_prompts(str(jsonl))) == ["a", "b"]
    for wrong in ('{"turns": []}', '{"turns": [1]}', "{}", "[]", "x"):
        jsonl.write_text(wrong)
        with pytest.raises(BadInput, match=r"a\.jsonl:1: must be an object"):
            list(read_prompts(str(jsonl)))
    (tmp_path / "a.txt").write_text('one\n\n{"prompt": "two"}\n')
    assert list(read_prompts(str(tmp_path / "a.txt"))) == ["one", '{"prompt": "two"}']


def test_human_eval_is_there() -> None:
    prompts = human_eval(164)
    assert len(set(prompts)) == 164
    assert all("def " in prompt for prompt in prompts)
