"""deploy/: what its files name is there, and their commands are ones of multispin."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.blocks import ROOT
from tests.docs.test_pages import check_commands

DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
PROGRAM = "/opt/multispin/bin/multispin"
MOST_EXPOSED = 2.0  # of 10, as systemd-analyze counts


def drop_in(unit: Path) -> Path:
    return unit.with_name(f"{unit.name}.d") / "network.conf"


def directives(unit: Path) -> list[tuple[str, str]]:
    lines = (line.partition("=") for line in unit.read_text().splitlines() if "=" in line)
    return [(key, value) for key, _, value in lines if not key.startswith("#")]


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_a_unit_starts_what_there_is(unit: Path) -> None:
    """By itself, and with its drop-in for the network."""
    here, there = directives(unit), directives(drop_in(unit))
    started = [shlex.split(value) for key, value in here + there if key == "ExecStart" and value]
    assert len(started) == 2
    assert ("ExecStart", "") in there  # replaces, not adds
    commands = []
    for program, *arguments in started:
        assert program == PROGRAM
        commands.append([a.replace("/etc/multispin", str(DEPLOY / "systemd")) for a in arguments])
        assert commands[-1] != arguments
    assert started[1][: len(started[0])] == started[0]
    check_commands(commands)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("has_drop_in", [False, True])
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_systemd_takes_a_unit(unit: Path, has_drop_in: bool, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace(PROGRAM, sys.executable))
    if has_drop_in:
        drop_in(copy).parent.mkdir()
        drop_in(copy).write_text(drop_in(unit).read_text().replace(PROGRAM, sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", copy],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"exposure level for \S+: ([\d.]+)", rated.stdout)
    assert found is not None, rated.stderr
    assert float(found[1]) < MOST_EXPOSED


def test_both_units_are_held_to_the_same() -> None:
    one, other = (
        {pair for pair in directives(unit) if pair[0] not in ("Description", "ExecStart")}
        for unit in UNITS
    )
    assert {key for key, _ in one ^ other} == {"LimitNOFILE"}  # a server has more links


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    read = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert isinstance(read, dict)
    return read


def test_the_image_is_built_from_what_is_here() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    for name in " ".join(copied).split():
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored  # that file leaves out all but what it names
    assert re.findall(r"https?://", text) == []
    assert "libgomp1" in text and "\nUSER multispin\n" in text


def test_the_services_start_what_there_is(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"server", "device-1", "device-2"}
    check_commands([service["command"] for service in compose["services"].values()])
    for service in compose["services"].values():
        build = service["build"]
        context = (DEPLOY / build["context"]).resolve()
        assert context == ROOT and (context / build["dockerfile"]).is_file()
        assert "ports" not in service
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        [models] = service["volumes"]
        assert models.split(":")[0] in compose["volumes"]


def test_a_service_is_healthy_when_it_answers(compose: dict[str, Any]) -> None:
    """The check is Python, which the image has, and asks the port that is served."""
    for name, service in compose["services"].items():
        program, flag, code = service["healthcheck"]["test"][1:]
        assert (program, flag) == ("python", "-c")
        compile(code, name, "exec")
        port = "8600" if name == "server" else "8601"
        assert f"127.0.0.1:{port}/health" in code
        if port == "8601":
            assert port in service["command"]
