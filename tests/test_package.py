"""The package as others get it: what is in the wheel, and what importing it does."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from multispin.errors import EngineFailed
from multispin.lm.llama_library import load_library

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Prints what importing does; modules are opened for reading.
WATCHED_IMPORT = """
import json, os, signal, sys, threading, warnings

FAMILIES = ("ctypes", "shutil", "socket", "subprocess", "tempfile")
EVENTS = (
    "_thread.start_new_thread", "os.exec", "os.fork", "os.mkdir", "os.posix_spawn", "os.putenv",
    "os.remove", "os.rename", "os.system",
)
events = []

def hook(event, arguments):
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if writes or event in EVENTS or event.partition(".")[0] in FAMILIES:
        events.append(event)

def state():
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)
    handlers = [signal.getsignal(number) for number in signals]
    return dict(os.environ), os.getcwd(), list(sys.path), list(warnings.filters), handlers

before, was = set(sys.modules), state()
sys.addaudithook(hook)
import multispin
print(json.dumps({
    "new": sorted(set(sys.modules) - before),
    "events": events,
    "num_threads": threading.active_count(),
    "state_is_kept": state() == was,
}))
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    [built] = folder.iterdir()
    assert isinstance(built, Path)
    return built


@pytest.fixture(scope="session")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run(unpacked: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with the package from the wheel, not from src/."""
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        cwd=unpacked.parent,
        env=os.environ | {"PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_has_the_package_and_nothing_else(unpacked: Path) -> None:
    def files(folder: Path) -> set[str]:
        return {
            str(path.relative_to(folder))
            for path in folder.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    assert files(unpacked / "multispin") == files(SOURCE / "multispin")
    assert (unpacked / "multispin" / "py.typed").is_file()
    assert {path.name.partition("-")[0] for path in unpacked.iterdir()} == {"multispin"}


def test_its_metadata(unpacked: Path) -> None:
    [info] = unpacked.glob("*.dist-info")
    told = Parser().parsestr((info / "METADATA").read_text())
    assert told["License-Expression"] == "Apache-2.0"
    assert (info / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    extras = {"cluster", "demo", "dev", "docs", "otel", "research"}
    assert set(told.get_all("Provides-Extra", ())) == extras
    assert "multispin = multispin.cli:main" in (info / "entry_points.txt").read_text()
    for requirement in told.get_all("Requires-Dist", ()):
        assert "@" not in requirement  # an address instead of a name


def test_it_runs_from_the_wheel(unpacked: Path) -> None:
    where = run(unpacked, "-c", "import multispin; print(multispin.__file__)")
    assert where.stdout.strip() == str(unpacked / "multispin" / "__init__.py")
    version = run(unpacked, "-m", "multispin", "--version")
    assert version.stdout.strip() == f"multispin {PROJECT['version']}", version.stderr
    doctor = run(unpacked, "-m", "multispin", "doctor", "--json")
    checks = {check["name"]: check["status"] for check in json.loads(doctor.stdout)["checks"]}
    assert checks["llama.cpp"] == "ok", doctor.stdout


def test_importing_it_does_nothing(unpacked: Path) -> None:
    done = run(unpacked, "-c", WATCHED_IMPORT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    seen = json.loads(done.stdout)
    assert seen["events"] == []
    assert seen["num_threads"] == 1
    assert seen["state_is_kept"]
    own = {name for name in seen["new"] if name.partition(".")[0] == "multispin"}
    assert own == {"multispin", "multispin.errors"}
    # The rest is what `typing` and `importlib` bring; anything of others would show.
    foreign = {name.partition(".")[0] for name in seen["new"]} - sys.stdlib_module_names
    assert foreign == {"multispin"}


def test_a_bare_system_is_told_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slim images of Debian have no OpenMP, which llama.cpp is linked to."""

    def lacks(path: str) -> None:
        raise OSError("libgomp.so.1: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", lacks)
    with pytest.raises(EngineFailed, match=r"libgomp\.so\.1.*apt install libgomp1"):
        load_library.__wrapped__()


@pytest.mark.slow
def test_it_installs_into_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    """`pip install` with everything that it needs, and `multispin doctor`."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    programs = tmp_path / "venv" / "bin"
    install = [programs / "pip", "install", "--quiet", "--only-binary", ":all:", wheel]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if "Max retries exceeded" in done.stderr or "Could not find a version" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    doctor = subprocess.run(
        [programs / "multispin", "doctor", "--json"],
        cwd=tmp_path,
        env={"PATH": str(programs), "MULTISPIN_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(doctor.stdout)
    assert report["ok"] and doctor.returncode == 0, doctor.stdout
