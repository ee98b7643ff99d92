"""``multispin models`` on a cache that holds nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from multispin.catalog.progress import progress_on_stderr
from multispin.cli.models import app
from multispin.errors import BadInput, ModelUnavailable


def invoke(cache: Path, *arguments: str) -> Result:
    environ = {"MULTISPIN_CACHE": str(cache), "MULTISPIN_OFFLINE": "1"}
    return CliRunner().invoke(app, arguments, env=environ)


def test_list_prints_one_json_object(tmp_path: Path) -> None:
    result = invoke(tmp_path, "list", "--json")
    listed = json.loads(result.stdout)
    assert listed["cache_dir"] == str(tmp_path)
    assert {model["name"]: model["path"] for model in listed["models"]} == {
        "smollm2-135m": None,
        "qwen2.5-coder-0.5b": None,
        "qwen2.5-coder-1.5b": None,
    }
    assert sum(model["num_bytes"] for model in listed["models"]) == 1_707_083_264


def test_list_is_a_table_for_people(tmp_path: Path) -> None:
    result = invoke(tmp_path, "list")
    assert result.exit_code == 0
    assert "1117 MB" in result.stdout


def test_path_never_pulls(tmp_path: Path) -> None:
    result = invoke(tmp_path, "path", "smollm2-135m")
    assert isinstance(result.exception, BadInput)
    assert "`multispin models pull smollm2-135m`" in str(result.exception)
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(b"GGUF")
    assert invoke(tmp_path, "path", str(mine)).stdout == f"{mine}\n"


def test_pull_prints_where_the_files_are(tmp_path: Path) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(b"GGUF")
    assert invoke(tmp_path, "pull", str(mine)).stdout == f"{mine}\n"
    assert isinstance(invoke(tmp_path, "pull", "smollm2-135m").exception, ModelUnavailable)
    assert isinstance(invoke(tmp_path, "pull", "smollm").exception, BadInput)


def test_progress_off_a_terminal_is_a_line_every_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_on_stderr() as progress:
        for done in range(0, 1001):
            progress(done * 100_000, 100_000_000, "tiny from PyPI")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[5] == "tiny from PyPI: 50 % (50 of 100 MB)"
