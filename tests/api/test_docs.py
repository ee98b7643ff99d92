"""docs/http.md: its program runs, and it lists what there is."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

from multispin.api.openai_schema import ChatRequest, CompletionRequest
from multispin.api.openapi import document
from tests.api.conftest import Endpoints

PAGE = (Path(__file__).parents[2] / "docs" / "http.md").read_text("utf-8")


def test_the_program_runs(endpoints: Endpoints) -> None:
    [program] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    program = program.replace("127.0.0.1:8601", endpoints.device)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        names: dict[str, object] = {}
        exec(program, names)
        names["client"].close()  # type: ignore[attr-defined]
    assert len(printed.getvalue().splitlines()) >= 2


@pytest.mark.parametrize("request_type", [ChatRequest, CompletionRequest])
def test_every_field_is_listed(request_type: type) -> None:
    listed = set(re.findall(r"`(\w+)`", PAGE))
    assert set(request_type.__struct_fields__) <= listed


def test_every_path_is_listed() -> None:
    for path in document([])["paths"]:
        assert path.replace("{name}", "NAME") in PAGE
