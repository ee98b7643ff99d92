"""docs/configuration.md: its file is read, its commands are run and print what is said."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from multispin.cli.settings import FILE_VARIABLE, OTHER_VARIABLES
from tests.docs.blocks import ROOT, Block, blocks

PAGE = blocks("configuration.md")
COMMANDS = [block for block in PAGE if block.language == "sh"]


@pytest.mark.parametrize("block", COMMANDS, ids=lambda block: f"line {block.line}")
def test_the_commands_print_what_is_said(block: Block, tmp_path: Path) -> None:
    [file] = [block for block in PAGE if block.language == "toml"]
    (tmp_path / "multispin.toml").write_text(file.code)
    done = subprocess.run(
        ["bash", "-c", f"multispin() {{ '{sys.executable}' -m multispin \"$@\"; }}\n{block.code}"],
        cwd=tmp_path,
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == block.output


def test_all_other_variables_are_listed() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    listed = re.findall(r"^\| `(MULTISPIN_\w+)` \|", text, re.MULTILINE)
    assert set(listed) == {FILE_VARIABLE, *OTHER_VARIABLES}
