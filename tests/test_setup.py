"""What a fresh clone runs: the Makefile, .ci/run, scripts/."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def build_native() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "build_native", ROOT / "scripts" / "build_native.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SAPPHIRE_RAPIDS = "avx2 avx512f avx512bw avx512vbmi avx512_vnni avx512_bf16 avx_vnni amx_tile"
GRANITE_RAPIDS_WITHOUT_AVX_VNNI = "avx2 avx512f avx512_vnni amx_bf16 amx_fp16"


@pytest.mark.parametrize(
    ("system", "machine", "flags", "expected"),
    [
        (
            *("Linux", "x86_64", SAPPHIRE_RAPIDS),
            "-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_VBMI=ON "
            "-DGGML_AVX512_BF16=ON -DGGML_AVX_VNNI=ON",
        ),
        (
            *("Linux", "x86_64", GRANITE_RAPIDS_WITHOUT_AVX_VNNI),
            "-DGGML_NATIVE=OFF -DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON",
        ),
        # Whatever AMX is announced with, it must not be built.
        ("Linux", "x86_64", "avx2 amx_complex", "-DGGML_NATIVE=OFF"),
        # Without AMX the default, which takes what the processor has, is right.
        ("Linux", "x86_64", "avx2 avx512f avx512_vnni avx512_bf16", ""),
        ("Linux", "x86_64", "avx2 avx_vnni", ""),
        ("Linux", "aarch64", "", ""),
        ("Darwin", "arm64", "", ""),
    ],
)
def test_flags_of_the_native_build(
    build_native: ModuleType, system: str, machine: str, flags: str, expected: str
) -> None:
    cpuinfo = f"processor\t: 0\nflags\t\t: fpu {flags}\n" if system == "Linux" else ""
    assert build_native.cmake_args(system, machine, cpuinfo, "") == expected
    with_cuda = build_native.cmake_args(system, machine, cpuinfo, "-DGGML_CUDA=ON")
    assert with_cuda == f"{expected} -DGGML_CUDA=ON".strip()


def run_build_native(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "build_native.py", "--dry-run"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_native_build_asks_for_its_tools() -> None:
    done = run_build_native(CXX="no-such-compiler")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "no working C++ compiler (no-such-compiler)" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_native_build_ends_with_the_crash_check() -> None:
    if shutil.which("c++") is None or shutil.which("cmake") is None:
        pytest.skip("needs c++ and cmake")
    done = run_build_native(CMAKE_ARGS="-DGGML_CUDA=ON")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "7 to 12 minutes" in lines[0]
    assert lines[0].endswith("-DGGML_CUDA=ON'")
    assert lines[-1].endswith("-m multispin doctor")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_alone_lists_the_targets() -> None:
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("demo", "demo-small", "native", "test", "lint", "clean"):
        assert f"make {target} " in done.stdout


def test_no_python_ends_in_one_line(tmp_path: Path) -> None:
    """In a folder without .venv, with an interpreter that is none."""
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "set_up.sh", "demo", "stamp"],
        cwd=tmp_path,
        env=os.environ | {"PYTHON": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no Python 3.11 or newer (tried false)")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert "set -euo pipefail" in text
    assert "make test" in text
