"""Build llama-cpp-python for this processor and install it beside this Python: `make native`.

``--dry-run`` prints what would be run. CMAKE_ARGS of the environment is appended to ours, so that
it wins; with ``-DGGML_CUDA=ON`` or ``-DGGML_VULKAN=ON`` there, the build uses the GPU.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from multispin.cli.doctor import announces_amx, processor_flags

REQUIREMENT = "llama-cpp-python==0.3.36"
TRIAL_MODEL = "smollm2-135m"

# What llama.cpp can use of AVX-512 and of its relatives, and the processor's flag for it.
SWITCHES = {
    "GGML_AVX512": "avx512f",
    "GGML_AVX512_VNNI": "avx512_vnni",
    "GGML_AVX512_VBMI": "avx512vbmi",
    "GGML_AVX512_BF16": "avx512_bf16",
    "GGML_AVX_VNNI": "avx_vnni",
}


def cmake_args(system: str, machine: str, cpuinfo: str, given: str) -> str:
    """CMAKE_ARGS for a build that does not crash; ``given`` are the user's, which come last.

    A default build takes all that the processor announces. That is right but for AMX, with which
    llama.cpp crashes (issue 20824) and for which it has no switch of its own: then everything is
    switched on by name, except AMX. (AVX, AVX2, FMA, F16C and BMI2 are on by default.)
    """
    flags = processor_flags(cpuinfo)
    ours = []
    if system == "Linux" and machine in ("x86_64", "AMD64") and announces_amx(flags):
        ours = ["-DGGML_NATIVE=OFF"]
        ours += [f"-D{switch}=ON" for switch, flag in SWITCHES.items() if flag in flags]
    return " ".join([*ours, given]).strip()


def missing_tool() -> str | None:
    """What the build needs and this machine lacks, as a line that says what to do."""
    compiler = os.environ.get("CXX", "c++")
    compile_nothing = [*shlex.split(compiler), "-fsyntax-only", "-x", "c++", os.devnull]
    try:
        works = subprocess.run(compile_nothing, capture_output=True, check=False).returncode == 0
    except OSError:
        works = False
    if not works:
        return (
            f"no working C++ compiler ({compiler}); Debian and Ubuntu: apt install g++, "
            "macOS: xcode-select --install"
        )
    if shutil.which("cmake") is None:
        return "no cmake; Debian and Ubuntu: apt install cmake, macOS: brew install cmake"
    return None


def main(arguments: list[str]) -> int:
    dry_run = arguments == ["--dry-run"]
    if arguments and not dry_run:
        print(f"error: unknown arguments {arguments}; there is --dry-run only", file=sys.stderr)
        return 2
    missing = missing_tool()
    if missing:
        print(f"error: {missing}", file=sys.stderr)
        return 2
    cpuinfo = Path("/proc/cpuinfo")
    environment = dict(os.environ)
    # The trial below is of what we build, not of a library that the user names.
    environment.pop("MULTISPIN_LLAMA_LIB", None)
    environment["CMAKE_ARGS"] = cmake_args(
        platform.system(),
        platform.machine(),
        cpuinfo.read_text() if cpuinfo.exists() else "",
        os.environ.get("CMAKE_ARGS", ""),
    )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    multispin = [sys.executable, "-m", "multispin"]
    with tempfile.TemporaryDirectory(prefix="multispin-native-") as folder:
        # A wheel that pip has in its cache may be of other flags; and the installed build is
        # replaced only when the new one is there.
        build = [*pip, "wheel", "--no-deps", "--no-cache-dir", "--no-binary", "llama-cpp-python"]
        install = [*pip, "install", "--quiet", "--force-reinstall", "--no-deps", "--no-index"]
        steps: list[tuple[str, list[str]]] = [
            (
                f"building {REQUIREMENT}: 7 to 12 minutes on two cores; "
                f"CMAKE_ARGS='{environment['CMAKE_ARGS']}'",
                [*build, "--wheel-dir", folder, REQUIREMENT],
            ),
            ("installing it", [*install, "--find-links", folder, REQUIREMENT]),
            (
                "what it depends on",
                [*pip, "install", "--quiet", "--only-binary", ":all:", REQUIREMENT],
            ),
            ("a model to try it with", [*multispin, "models", "pull", TRIAL_MODEL]),
            ("does it run here?", [*multispin, "doctor"]),
        ]
        for title, command in steps:
            print(f"==> {title}", flush=True)
            if dry_run:
                print(f"    {shlex.join(command)}")
                continue
            code = subprocess.run(command, env=environment, check=False).returncode
            if code != 0:
                print(f"error: this failed: {shlex.join(command)}", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
