"""The crash checks run against a library that really crashes: llama.cpp with one function replaced,
compiled here, as a build that does not fit the processor would behave."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from multispin.catalog import find_model
from multispin.cli.doctor import (
    Check,
    check_batches,
    check_disk,
    check_library,
    check_port,
    check_processor,
    check_wait_policy,
    probe_library,
    processor_flags,
)
from tests.lm.lm_tiny_gguf import tiny_llama

CRASH_WHEN_LOADED = "__attribute__((constructor)) static void start(void) { raise(SIGILL); }"
CRASH_AT_MODEL = "void *llama_model_load_from_file(void) { *(volatile int *)0 = 1; return 0; }"
# The symptom on processors that announce AMX: one row goes well, several do not.
CRASH_AT_SEVERAL_ROWS = """
struct batch { int num_rows; void *arrays[6]; };
int llama_decode(void *context, struct batch batch) {
    if (batch.num_rows > 1) raise(SIGILL);
    int (*real)(void *, struct batch) =
        dlsym(dlopen(REAL, RTLD_NOW | RTLD_NOLOAD), "llama_decode");
    return real(context, batch);
}
"""
OTHER_VERSION = """
struct params { char bytes[80]; };
struct params llama_model_default_params(void) { struct params p = {{0}}; return p; }
"""

Build = Callable[[str], Path]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Compile a library that is llama.cpp but for the functions in the C text given."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler")
    spec = importlib.util.find_spec("xllamacpp")
    assert spec is not None and spec.origin is not None
    real = next(Path(spec.origin).parent.glob("xllamacpp*.so"))

    def compile_library(text: str) -> Path:
        source, library = tmp_path / "other.c", tmp_path / "libother.so"
        source.write_text(
            "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <signal.h>\n"
            f'#define REAL "{real}"\n{text}'
        )
        command = [compiler, "-shared", "-fPIC", "-Wl,--no-as-needed", source, real]
        command += [f"-Wl,-rpath,{real.parent}", "-o", library]
        subprocess.run(command, check=True, capture_output=True)
        return library

    return compile_library


@pytest.fixture
def no_model(tmp_path: Path) -> Path:
    """A file that passes for a model until llama.cpp reads it."""
    file = tmp_path / "none.gguf"
    file.write_bytes(tiny_llama(causal=True))
    return file


def judge(library: Path, model: Path | None, monkeypatch: pytest.MonkeyPatch) -> dict[str, Check]:
    monkeypatch.setenv("MULTISPIN_LLAMA_LIB", str(library))
    probe = probe_library(model)
    return {check.name: check for check in (check_library(probe), check_batches(probe, model))}


def run_doctor(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "multispin", "doctor", *options],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.models
def test_a_build_that_crashes_at_several_rows_is_found_and_survived(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = judge(build(CRASH_AT_SEVERAL_ROWS), find_model("smollm2-135m"), monkeypatch)
    assert checks["llama.cpp"].status == "ok"
    found = checks["batches"]
    assert found.status == "failed"
    assert "this build crashes on this processor (SIGILL, in a batch of 8 rows" in found.detail
    assert found.remedy == "unset MULTISPIN_LLAMA_LIB"


def test_a_build_that_crashes_at_the_model(
    build: Build, no_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = judge(build(CRASH_AT_MODEL), no_model, monkeypatch)
    assert checks["llama.cpp"].status == "ok"
    assert checks["batches"].status == "failed"
    assert "SIGSEGV" in checks["batches"].detail


def test_a_library_that_crashes_when_loaded(
    build: Build, no_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = judge(build(CRASH_WHEN_LOADED), no_model, monkeypatch)
    assert checks["llama.cpp"] == Check(
        "llama.cpp", "failed", "crashes when loaded (SIGILL)", "unset MULTISPIN_LLAMA_LIB"
    )
    assert checks["batches"].status == "failed"


def test_a_library_of_another_version_is_refused(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = judge(build(OTHER_VERSION), None, monkeypatch)
    assert checks["llama.cpp"].status == "failed"
    assert "another version of llama.cpp" in checks["llama.cpp"].detail
    assert "unset MULTISPIN_LLAMA_LIB" in checks["llama.cpp"].remedy


def test_a_damaged_model_fails_without_blaming_the_build(no_model: Path) -> None:
    no_model.write_bytes(no_model.read_bytes()[:-1])
    probe = probe_library(no_model)
    assert check_library(probe).status == "ok"
    found = check_batches(probe, no_model)
    assert found.status == "failed"
    assert "the file is damaged" in found.detail
    assert "crashes" not in found.detail


def test_a_trial_that_hangs_is_ended(no_model: Path) -> None:
    probe = probe_library(no_model, timeout_s=0.01)
    assert probe.death == "did not end in 0.01 s"
    assert check_library(probe).status == "failed"


@pytest.mark.models
def test_the_report_of_a_good_installation() -> None:
    find_model("smollm2-135m")
    done = run_doctor("--json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] is True
    checks = {check["name"]: check for check in report["checks"]}
    assert set(checks) == {
        *("python", "processor", "llama.cpp", "batches", "models", "disk", "port", "threads")
    }
    assert all(set(c) == {"name", "status", "detail", "remedy"} for c in checks.values())
    assert checks["batches"]["status"] == "ok"
    assert "8 rows" in checks["batches"]["detail"]


def test_without_models_the_trial_is_skipped_visibly(tmp_path: Path) -> None:
    done = run_doctor(MULTISPIN_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if "batches" in line)
    assert line.startswith("warning")
    assert "skipped: no model in the cache" in line
    assert "multispin models pull smollm2-135m" in line
    assert done.stdout.endswith("\nusable\n")


def test_a_library_that_is_not_there_and_a_damaged_model(tmp_path: Path) -> None:
    (tmp_path / "smollm2-135m.gguf").write_bytes(b"GGUF")
    done = run_doctor(
        "--json", MULTISPIN_CACHE=str(tmp_path), MULTISPIN_LLAMA_LIB=str(tmp_path / "none.so")
    )
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert report["ok"] is False
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["llama.cpp"]["status"] == "failed"
    assert "none.so" in checks["llama.cpp"]["detail"]
    assert checks["models"]["status"] == "warning"
    assert checks["models"]["remedy"] == "run `multispin models pull smollm2-135m`"


def test_processors() -> None:
    flags = processor_flags("processor\t: 0\nflags\t\t: fpu avx2 avx512f amx_tile\nbugs\t\t: x\n")
    assert flags == {"fpu", "avx2", "avx512f", "amx_tile"}
    assert processor_flags("") == frozenset()
    amx = check_processor("x86_64", flags, 4)
    assert amx.status == "ok"
    assert "x86_64, 4 cores, AVX2, AVX-512, AMX" in amx.detail
    old = check_processor("x86_64", frozenset({"fpu", "avx"}), 2)
    assert (old.status, old.remedy) == ("warning", "run `make native`")
    assert check_processor("arm64", frozenset(), 8).status == "ok"


def test_a_port_that_is_taken() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert check_port(other.getsockname()[1]).status == "warning"


def test_room_for_the_models(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet"
    assert check_disk(folder, 0).status == "ok"
    short = check_disk(folder, 10**18)
    assert short.status == "warning"
    assert "MULTISPIN_CACHE" in short.remedy


def test_wait_policy() -> None:
    assert check_wait_policy("PASSIVE").remedy == ""
    assert "passive" in check_wait_policy("").remedy
    assert check_wait_policy("active").status == "warning"


@pytest.mark.models
def test_serve_ends_with_one_line_on_a_build_that_crashes(build: Build) -> None:
    find_model("smollm2-135m")
    library = build(CRASH_AT_SEVERAL_ROWS)
    done = subprocess.run(
        [sys.executable, "-m", "multispin", "serve", "--target", "smollm2-135m", "--port", "0"],
        env=os.environ | {"MULTISPIN_LLAMA_LIB": str(library)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stdout == ""  # no address: it never was ready
    loading, error = done.stderr.splitlines()
    assert loading.startswith("loading")
    assert error.startswith("error: ")
    assert "SIGILL" in error
    assert "`multispin doctor`" in error
