"""TOML files as tables, before anything in them is checked."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from multispin.errors import BadInput


def read_tables(path: Path, kind: str) -> dict[str, Any]:
    """``kind`` is what messages call the file. Raises BadInput for one that is none."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise BadInput(kind, path, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadInput(kind, path, f"is not UTF-8 text: {error.reason}") from None
    return parse_tables(text, str(path))


def parse_tables(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(source, "(not TOML)", str(error)) from None
