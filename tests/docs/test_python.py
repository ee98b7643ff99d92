"""docs/python.md: every example is executed and compared with what it is said to print."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator

import pytest

from multispin import client
from multispin.net.device import Device
from multispin.net.drafting import DrafterOptions
from multispin.types import SamplingParams
from tests.cli.test_commands import serving
from tests.docs.blocks import ROOT, Block, blocks

EXAMPLES = [block for block in blocks("python.md") if block.language == "python"]
ADDRESS = "127.0.0.1:8600"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving() as (_, address):
        yield address


@pytest.fixture(scope="module")
def names() -> dict[str, object]:
    """One page, one program."""
    return {}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda block: f"line {block.line}")
def test_the_example_prints_what_is_said(
    server: str, names: dict[str, object], example: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    names["multispin"] = __import__("multispin")
    code = compile(
        "\n" * example.line + example.code.replace(ADDRESS, server), "docs/python.md", "exec"
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    assert printed.getvalue() == (example.output or "")


def rows() -> dict[str, str]:
    """Name -> default, of the tables of options."""
    text = (ROOT / "docs" / "python.md").read_text()
    found = {}
    for row in re.finditer(r"^\| (`\w+`(?:, `\w+`)*) \| ([^|]*) \|", text, re.MULTILINE):
        names = re.findall(r"`(\w+)`", row[1])
        defaults = [value.strip('` "') for value in row[2].split(",")]
        if len(defaults) == len(names):
            found.update(zip(names, defaults, strict=True))
    return found


def test_every_option_is_documented_with_its_default() -> None:
    documented = rows()
    assert set(documented) == {"offline"} | set(client.Connecting.__annotations__) | set(
        client.Options.__annotations__
    )
    assert documented["offline"] == Device(None, None).offline  # type: ignore[arg-type]
    sampling, drafting = SamplingParams(), DrafterOptions("")
    for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
        assert float(documented[name]) == getattr(sampling, name)
    for name in ("num_sequences", "context_length", "gpu_layers"):
        assert int(documented[name]) == getattr(drafting, name)
    assert documented["draft"] == client.DRAFT
    assert int(documented["draft_length"]) == client.DRAFT_LENGTH
    assert int(documented["max_tokens"]) == client.MAX_TOKENS
