"""Every page of docs/: what can be run is run, and every command is one that there is."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import DOCS, ROOT, Block, blocks, commands, pages
from tests.docs.program import Program, matches

LANGUAGES = {"sh", "python", "text", "console", "toml", "yaml", "json", "promql"}
# Elsewhere in these tests, with what else they promise.
OTHER_TESTS = {"configuration.md", "python.md", "security.md"}
# The blocks of these pages take minutes, or show a command by itself whose files are not there.
README = "../README.md"
PARSED = {"measuring.md", "reproduce.md"}
RUN = [
    page
    for page in pages()
    if page not in OTHER_TESTS | PARSED
    and any(block.language in ("sh", "python") for block in blocks(page))
]
TAKE = """
import contextlib, io, json, sys
from multispin.cli import app, commands, config
commands.register(app)
config.configure(app)
answers = []
for line in json.load(sys.stdin):
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            app([*line, "--print-config"], standalone_mode=False)
        answers.append("" if printed.getvalue() else "printed no settings")
    except BaseException as error:
        answers.append(f"{type(error).__name__}: {error}")
print(json.dumps(answers))
"""
BEFORE = r"sudo (?:-u \S+ )?|(?:[A-Z_]+=\S+ )+|docker (?:run|compose .* exec) .*?"
MULTISPIN = re.compile(rf"^(?:{BEFORE})?(?:\S*/bin/)?multispin (.*)$")


@pytest.mark.parametrize("page", [*RUN, pytest.param(README, marks=pytest.mark.slow)])
def test_the_page_runs(page: str, tmp_path: Path) -> None:
    with Program(tmp_path) as program:
        for block in blocks(page):
            if block.language in ("sh", "python"):
                program.run(block)


@pytest.mark.parametrize("page", pages())
def test_languages_are_known(page: str) -> None:
    """A block in another one would be run by nobody, and nobody would be told."""
    fences = re.findall(r"^ *```(\S*)", (DOCS / page).read_text(), re.MULTILINE)
    assert not any(fences[1::2]), "a block does not end"
    assert set(fences[::2]) <= LANGUAGES


@pytest.mark.parametrize("page", pages())
def test_what_is_not_run_has_prompts(page: str) -> None:
    for block in blocks(page):
        if block.language == "console":
            assert all(line.startswith("$ ") for line in block.code.splitlines()), block.line


def arguments(block: Block) -> list[list[str]]:
    """Of the multispin commands in it."""
    found = (MULTISPIN.match(line) for line in commands(block.code))
    return [shlex.split(re.split(r" [|>&]| 2>", match[1])[0]) for match in found if match]


SHOWN = {
    page: [
        line
        for block in blocks(page)
        if block.language == "console" or (block.language == "sh" and page in (*PARSED, README))
        for line in arguments(block)
    ]
    for page in (*pages(), README)
}


@pytest.mark.parametrize("page", [page for page, lines in SHOWN.items() if lines])
def test_commands_that_are_not_run_are_ones_that_there_are(page: str) -> None:
    check_commands(SHOWN[page])


def check_commands(lines: list[list[str]]) -> None:
    """Whether multispin would take them: each prints its settings, and does nothing."""
    done = subprocess.run(
        [sys.executable, "-c", TAKE],
        cwd=ROOT,
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    refused = [f"{shlex.join(a)}: {b}" for a, b in zip(lines, answers, strict=True) if b]
    assert refused == []


def test_own_policy_is_the_example() -> None:
    [code] = [b.code for b in blocks("research-guide.md") if "def plan" in b.code]
    assert code == (ROOT / "examples" / "own_policy.py").read_text()


@pytest.mark.parametrize(
    ("said", "printed", "same"),
    [
        ("a\nb\n", "a\nb\n", True),
        ("a\n", "a\nb\n", False),
        ("a...c\n", "a\nb\nc\n", True),
        ("a...c\n", "a\nb\n", False),
        (".\n", "a\n", False),
    ],
)
def test_what_is_said_is_compared(said: str, printed: str, same: bool) -> None:
    assert matches(said, printed) is same
