"""The fenced blocks of a page: what is to be run, and what it prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Block(NamedTuple):
    language: str
    code: str
    line: int
    output: str | None  # of the block of text that follows, if one does


def blocks(page: str) -> list[Block]:
    """Of docs/``page``; a block of text that follows another at once is what that one prints."""
    text = (ROOT / "docs" / page).read_text()
    fence = r"^```(\w+)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?"
    return [
        Block(found[1], found[2], text[: found.start()].count("\n") + 1, found[3])
        for found in re.finditer(fence, text, re.MULTILINE | re.DOTALL)
    ]
