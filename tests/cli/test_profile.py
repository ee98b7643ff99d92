"""``multispin profile`` as a person runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from multispin.cell import load_cell
from multispin.control import solve


def run(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "multispin", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "OMP_WAIT_POLICY": "passive", "MULTISPIN_OFFLINE": "0"},
    )


def test_the_written_file_is_planned(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "A device drafts"}\n{"prompt": "The server"}\n')
    out = tmp_path / "CELL.toml"
    arguments = ["--target", "ngram", "--draft", "ngram", "--prompts", str(prompts)]
    done = run("profile", *arguments, "--max-tokens", "20", "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert out.read_text() == report["cell_toml"]
    assert 0 <= report["acceptance"] <= 1
    assert len(report["prompts"]) == 2
    assert str(tmp_path) not in out.read_text()
    planned = run("plan", str(out), "--json")
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["goodput_tokens_per_s"] > 0

    again = run("profile", *arguments, "--out", str(out))
    assert again.returncode == 2
    assert again.stderr == f"error: --out = {out}: exists already; remove it or name another file\n"


def test_without_a_file_the_cell_goes_to_standard_output(tmp_path: Path) -> None:
    done = run("profile", "--target", "ngram", "--max-tokens", "4", "--temperature", "0.7")
    assert done.returncode == 0, done.stderr
    assert "prompt 8 of 8" in done.stderr
    assert "verification by ngram" in done.stderr
    out = tmp_path / "cell.toml"
    out.write_text(done.stdout)
    assert load_cell(out).names == ("lookup",)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--draft", "none"], "--draft = none: drafts nothing"),
        (["--draft", "/no/such.gguf"], "/no/such.gguf"),
        (["--prompts", "/no/such.txt"], "--prompts = /no/such.txt: cannot be read"),
        (["--prompts", os.devnull], "holds no prompt"),
        (["--max-tokens", "0"], "--max-tokens = 0: must be at least 1"),
        (["--draft-length", "33"], "--draft-length = 33: must be 1 to 32"),
        (["--ctx-size", "100"], "--ctx-size = 100: must be at least 256"),
        (["--max-tokens", "1000"], "prompt 1 = "),
        (["--out", "-", "--json"], "--out = -: standard output is for --json"),
        (["--out", "/no/such/folder/x.toml"], "there is no folder /no/such/folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], says: str) -> None:
    done = run("profile", "--target", "ngram", *arguments)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.models
def test_two_models_without_a_common_vocabulary_are_both_named() -> None:
    done = run("profile", "--target", "ngram", "--draft", "smollm2-135m", timeout=300)
    assert done.returncode == 2
    assert "--draft = smollm2-135m: its vocabulary differs from that of the target ngram" in (
        done.stderr
    )


@pytest.mark.models
def test_a_real_target_with_prompt_lookup(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("red green blue " * 12 + "red\n")
    out = tmp_path / "CELL.toml"
    arguments = ["--target", "smollm2-135m", "--draft", "lookup", "--prompts", str(prompts)]
    done = run("profile", *arguments, "--max-tokens", "24", "--out", str(out), timeout=500)
    assert done.returncode == 0, done.stderr
    problem = load_cell(out).problem
    assert problem.acceptance[0] > 0.5  # a text that repeats itself
    assert problem.bits_per_token[0] == 16 + 3  # an id and a level
    assert problem.draft_s_per_token[0] < 0.01
    assert problem.verify_fixed_s + problem.verify_per_token_s > 0
    assert solve(problem).goodput_tokens_per_s > 0
