"""docs/security.md: its commands are run, or at least are commands that there are."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, blocks

MULTISPIN = [sys.executable, "-m", "multispin"]
PAGE = blocks("security.md")
SHELL = [block.code for block in PAGE if block.language == "sh"]
LINES = [line for code in SHELL for line in code.splitlines() if line.startswith("multispin ")]
SERVING = [line for line in LINES if re.match("multispin (serve|device)", line)]


def test_making_certificates_and_tokens_makes_all_files_that_are_named(tmp_path: Path) -> None:
    code = "\n".join(block for block in SHELL if "tokens add" in block)
    code += "\nmultispin certs tls --device phone-7"
    subprocess.run(
        ["bash", "-ec", f"multispin() {{ '{sys.executable}' -m multispin \"$@\"; }}\n{code}"],
        cwd=tmp_path,
        check=True,
        timeout=60,
        capture_output=True,
    )
    words = {word for line in LINES for word in line.split()}
    for name in (word for word in words if re.search(r"\.(pem|key|token|json)$", word)):
        assert (tmp_path / name).exists() or (tmp_path / "tls" / name).exists(), name
    for file in tmp_path.rglob("*"):
        if file.suffix in (".key", ".token", ".json"):
            assert file.stat().st_mode & 0o077 == 0, file


@pytest.mark.parametrize("line", SERVING)
def test_the_commands_are_commands(line: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*MULTISPIN, *shlex.split(line)[1:], "--print-config"],
        cwd=tmp_path,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_what_is_said_without_tls_and_tokens_is_what_is_written() -> None:
    [written] = [block.code for block in PAGE if block.language == "text"]
    done = subprocess.run(
        [*MULTISPIN, "serve", "--target", "ngram", "--host", "0.0.0.0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr.strip() == written.strip()


def test_every_path_of_a_page_is_there() -> None:
    text = (ROOT / "docs" / "security.md").read_text() + (ROOT / "SECURITY.md").read_text()
    assert "## What sizes and times tell" in text
    for path in re.findall(r"\]\(([\w/.-]+\.md)", text):
        assert (ROOT / "docs" / path).exists() or (ROOT / path).exists(), path
