"""The fenced blocks of a page: what is to be run, and what it prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FENCE = r"^```(\w+)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?"


class Block(NamedTuple):
    language: str
    code: str
    line: int
    output: str | None  # of the block of text that follows, if one does


def pages() -> list[str]:
    """All of them, relative to docs/."""
    return sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def blocks(page: str) -> list[Block]:
    """Of docs/``page``; a block of text that follows another at once is what that one prints."""
    text = (DOCS / page).read_text()
    return [
        Block(found[1], found[2], text[: found.start()].count("\n") + 1, found[3])
        for found in re.finditer(FENCE, text, re.MULTILINE | re.DOTALL)
    ]


def commands(code: str) -> list[str]:
    """The lines of a block, those that are continued in one, prompts and comments left out."""
    lines = code.replace("\\\n", " ").splitlines()
    return [re.sub(r"(^|\s+)#.*", "", line.removeprefix("$ ")).strip() for line in lines]
