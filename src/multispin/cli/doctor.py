"""`multispin doctor`: what this installation has, what it lacks, and what to do about it.

llama.cpp is tried in a child process, because a build that does not fit the processor takes its
process down with it: default native builds, for one, crash on processors that announce AMX, at the
first batch of more than one row (llama.cpp issue 20824).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import typer

from multispin.cli import options
from multispin.errors import BadInput, MultispinError

PROBE_TIMEOUT_S = 120.0
PROBE_ROWS = (1, 8)  # one token, and a batch such as verification makes
CRASH_SIGNALS = ("SIGILL", "SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGTRAP")

Status: TypeAlias = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """One line of the report. ``remedy`` says what to do, "" where there is nothing to do."""

    name: str
    status: Status
    detail: str
    remedy: str = ""


def doctor(as_json: options.Json = False) -> None:
    """Check this installation and say what to do about what is wrong."""
    checks = []
    for check in run_checks():
        checks.append(check)
        if not as_json:
            remedy = f"; {check.remedy}" if check.remedy else ""
            print(f"{check.status:8} {check.name:10} {check.detail}{remedy}", flush=True)
    num_failed = sum(check.status == "failed" for check in checks)
    if as_json:
        print(json.dumps({"ok": not num_failed, "checks": [asdict(check) for check in checks]}))
    else:
        print("not usable: see what failed above" if num_failed else "usable")
    if num_failed:
        raise typer.Exit(1)


def run_checks() -> Iterator[Check]:
    """All checks, the slow ones while the first results can be read already."""
    from multispin.catalog import cache_dir

    yield check_python()
    yield check_processor(platform.machine(), processor_flags(_cpuinfo()), _num_cores())
    models = check_models()
    probe = probe_library(models.smallest)
    yield check_library(probe)
    yield check_batches(probe, models.smallest)
    yield models.check
    yield check_disk(cache_dir(), models.num_missing_bytes)
    yield check_port(options.DEFAULT_PORT)
    yield check_wait_policy(os.environ.get("OMP_WAIT_POLICY", ""))


def check_python() -> Check:
    """For the report: an older Python than 3.11 does not come this far."""
    return Check("python", "ok", f"{platform.python_version()} ({sys.executable})")


# --- processor -------------------------------------------------------------------------------


def processor_flags(cpuinfo: str) -> frozenset[str]:
    """The flags of the first processor in the text of /proc/cpuinfo; none where there is none."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):  # x86, Arm
            return frozenset(value.split())
    return frozenset()


def announces_amx(flags: frozenset[str]) -> bool:
    return any(flag.startswith("amx") for flag in flags)


def check_processor(machine: str, flags: frozenset[str], num_cores: int) -> Check:
    names = [name for name, flag in (("AVX2", "avx2"), ("AVX-512", "avx512f")) if flag in flags]
    detail = ", ".join([f"{machine}, {num_cores} cores", *names])
    if announces_amx(flags):
        detail += ", AMX (`make native` leaves it out: llama.cpp crashes with it)"
    if machine in ("x86_64", "AMD64") and flags and "avx2" not in flags:
        return Check(
            "processor",
            "warning",
            f"{detail}: no AVX2, which the prebuilt llama.cpp needs",
            "run `make native`",
        )
    return Check("processor", "ok", detail)


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""  # not Linux


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- llama.cpp, in a child process -----------------------------------------------------------


@dataclass
class Probe:
    """What a child process told of llama.cpp until it ended, by itself or not."""

    library: dict[str, Any] | None = None  # LlamaLibrary.describe()
    batch_ms: dict[int, float] = field(default_factory=dict)  # rows: milliseconds
    error: str = ""  # what multispin itself refused
    crash: str = ""  # the name of the signal
    death: str = ""  # any other end before the end


def probe_library(model: Path | None, *, timeout_s: float = PROBE_TIMEOUT_S) -> Probe:
    """Load llama.cpp in a child process and, with a model, run batches of `PROBE_ROWS` rows."""
    command = "from multispin.cli.doctor import probe_child; probe_child()"
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-c", command, *([os.fspath(model)] if model else [])],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            env={"OMP_WAIT_POLICY": "passive", "GGML_NO_BACKTRACE": "1"} | os.environ,
        )
    except subprocess.TimeoutExpired as stuck:
        probe = _read_probe(stuck.stdout or b"")
        probe.death = f"did not end in {timeout_s:g} s"
        return probe
    probe = _read_probe(child.stdout)
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        if name in CRASH_SIGNALS:
            probe.crash = name
        else:
            probe.death = f"was ended by {name}"
    elif child.returncode > 0:
        last = child.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        probe.death = f"ended with exit code {child.returncode} ({last or 'no word of why'})"
    return probe


def _read_probe(report: bytes) -> Probe:
    probe = Probe()
    for line in report.splitlines():
        match json.loads(line):
            case {"library": library}:
                probe.library = library
            case {"rows": rows, "ms": ms}:
                probe.batch_ms[rows] = ms
            case {"error": error}:
                probe.error = error
    return probe


def probe_child() -> None:
    """The child: a JSON line on standard output for each thing that worked."""
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what native code prints must not mix with the report

    def tell(**event: object) -> None:
        report.write(json.dumps(event) + "\n")
        report.flush()

    try:
        from multispin.lm.llama_library import load_library

        tell(library=load_library().describe())
        for path in sys.argv[1:]:
            for rows, ms in time_batches(Path(path)):
                tell(rows=rows, ms=ms)
    except MultispinError as error:
        tell(error=str(error))


def time_batches(path: Path) -> Iterator[tuple[int, float]]:
    """Rows and milliseconds of batches of `PROBE_ROWS` rows, each run twice to be warm."""
    import numpy as np

    from multispin.lm.base import Rows
    from multispin.lm.llama import LlamaModel

    model = LlamaModel(
        path=path, name=path.stem, num_sequences=1, context_length=64, threads=_num_cores()
    )
    for num_rows in PROBE_ROWS:
        zeros = np.zeros(num_rows, np.int32)
        rows = Rows(zeros, np.arange(num_rows, dtype=np.int32), zeros, np.ones(num_rows, np.bool_))
        for _ in range(2):
            began = time.perf_counter()
            model.forward(rows)
            ms = 1e3 * (time.perf_counter() - began)
            model.truncate(0, 0)
        yield num_rows, round(ms, 2)
    model.close()


def check_library(probe: Probe) -> Check:
    library = probe.library
    if library is None:
        if probe.crash:
            return Check("llama.cpp", "failed", f"crashes when loaded ({probe.crash})", _other())
        detail, _, remedy = (probe.error or f"loading it {probe.death}").rpartition("; ")
        return Check("llama.cpp", "failed", detail or remedy, remedy if detail else _other())
    gpu = ", GPU" if library["gpu"] else ""
    detail = f"{library['kind']} {library['version']}{gpu}, default parameters read back right"
    return Check("llama.cpp", "ok", f"{detail} ({library['path']})")


def check_batches(probe: Probe, model: Path | None) -> Check:
    if probe.library is None:
        return Check("batches", "failed", "not tried: llama.cpp does not load")
    if model is None:
        return Check(
            "batches",
            "warning",
            "skipped: no model in the cache",
            "run `multispin models pull smollm2-135m`, then doctor again",
        )
    if probe.crash:
        last = max(probe.batch_ms, default=0)
        missing = [rows for rows in PROBE_ROWS if rows > last]
        at = f"in a batch of {missing[0]} rows" if last and missing else "at the first batch"
        detail = f"this build crashes on this processor ({probe.crash}, {at}, {model.name})"
        return Check("batches", "failed", detail, _other())
    if probe.error or probe.death:
        return Check("batches", "failed", probe.error or f"the trial {probe.death}", _other())
    times = ", ".join(
        f"{rows} {'row' if rows == 1 else 'rows'} {ms:.1f} ms"
        for rows, ms in probe.batch_ms.items()
    )
    return Check("batches", "ok", f"{model.name}: {times}")


def _other() -> str:
    """What to do about a library that does not work: how to come by another one."""
    from multispin.lm.llama_library import LIBRARY_VARIABLE

    if os.environ.get(LIBRARY_VARIABLE):
        return f"unset {LIBRARY_VARIABLE}"
    if importlib.util.find_spec("llama_cpp") is not None:
        return (
            "run `make native` to build it again with flags that fit, or "
            f"`{sys.executable} -m pip uninstall llama-cpp-python` to use the prebuilt one"
        )
    return "run `make native` to build one for this processor"


# --- models, disk, port, threads -------------------------------------------------------------


@dataclass(frozen=True)
class CachedModels:
    check: Check
    smallest: Path | None  # verified
    num_missing_bytes: int


def check_models() -> CachedModels:
    from multispin import catalog

    here, damaged = [], []
    smallest = None
    num_missing_bytes = 0
    for model in catalog.entries():
        path = catalog.local_path(model.name)
        if path is not None:
            here.append(model.name)
            smallest = smallest or path
            continue
        num_missing_bytes += model.num_bytes or 0
        if (catalog.cache_dir() / f"{model.name}.gguf").exists():
            damaged.append(model.name)
    if damaged:
        check = Check(
            "models",
            "warning",
            f"{', '.join(damaged)} damaged in {catalog.cache_dir()}",
            f"run `multispin models pull {' '.join(damaged)}`",
        )
    elif here:
        check = Check("models", "ok", f"{', '.join(here)}: verified")
    else:
        check = Check("models", "ok", "none in the cache yet: each is pulled when first needed")
    return CachedModels(check, smallest, num_missing_bytes)


def check_disk(folder: Path, num_missing_bytes: int) -> Check:
    """Is there room for the models that are not here yet?"""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{free / 1e9:.1f} GB free in {folder}"
    if not os.access(existing, os.W_OK):
        return Check(
            "disk", "warning", f"{existing} is read-only", "set MULTISPIN_CACHE to another folder"
        )
    if free < num_missing_bytes:
        return Check(
            "disk",
            "warning",
            f"{detail}, {num_missing_bytes / 1e9:.1f} GB needed for the models not yet pulled",
            "free some, or set MULTISPIN_CACHE to a folder on a larger disk",
        )
    return Check("disk", "ok", detail)


def check_port(port: int) -> Check:
    from multispin.api.serving import bind

    try:
        with contextlib.closing(bind("127.0.0.1", port)):
            return Check("port", "ok", f"{port} is free")
    except BadInput:
        return Check(
            "port",
            "warning",
            f"{port}, the default one, is taken",
            "stop what listens there, or `multispin serve --port 0`",
        )


def check_wait_policy(policy: str) -> Check:
    several = "`export OMP_WAIT_POLICY=passive` when several models run on these cores"
    match policy.lower():
        case "passive":
            return Check("threads", "ok", "OMP_WAIT_POLICY is passive")
        case "active":
            return Check("threads", "warning", "OMP_WAIT_POLICY is active", several)
        case _:
            return Check("threads", "ok", "OMP_WAIT_POLICY is not set", several)
