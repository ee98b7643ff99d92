"""What the server takes beside the model, its cache and llama.cpp's buffers.

    python benchmarks/memory.py MODEL [--max-sessions 8] [--ctx-size 4096]

Starts `multispin serve`, writes a text with eight sessions at once, and adds up the resident memory
of the server and its engine process. Taken off are the model file and the buffers that llama.cpp
reports for the same settings. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from multispin.catalog import find_model
from multispin.lm.llama import LlamaModel

MB = 1e6
BUFFER = re.compile(r"(KV|compute|output)\s+buffer size\s*=\s*([\d.]+) MiB")


class Buffers(logging.Handler):
    """Adds up the buffers that llama.cpp says it allocates."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.mb = {"KV": 0.0, "compute": 0.0, "output": 0.0}

    def emit(self, record: logging.LogRecord) -> None:
        for kind, size in BUFFER.findall(record.getMessage()):
            self.mb[kind] += float(size) * 2**20 / MB


def buffers(path: Path, num_sequences: int, context_length: int) -> dict[str, float]:
    logger = logging.getLogger("multispin.llama")
    logger.setLevel(logging.DEBUG)
    handler = Buffers()
    logger.addHandler(handler)
    LlamaModel(
        path=path,
        name="measured",
        num_sequences=num_sequences,
        context_length=context_length,
        threads=2,
    ).close()
    logger.removeHandler(handler)
    return handler.mb


def resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / MB
    raise RuntimeError(f"no VmRSS for process {pid}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--max-sessions", type=int, default=8)
    parser.add_argument("--ctx-size", type=int, default=4096)
    arguments = parser.parse_args()
    path = find_model(arguments.model)
    multispin = [sys.executable, "-m", "multispin"]
    server = subprocess.Popen(
        [
            *multispin,
            *("serve", "--target", arguments.model, "--port", "0"),
            *("--max-sessions", str(arguments.max_sessions)),
            *("--ctx-size", str(arguments.ctx_size)),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()

        def write(index: int) -> None:
            subprocess.run(
                [
                    *multispin,
                    *("complete", f"def f{index}(x):", "--server", address, "--draft", "lookup"),
                    *("--max-tokens", "16", "--temperature", "0.8", "--json"),
                ],
                stdout=subprocess.DEVNULL,
                check=True,
            )

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(8)))
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        processes = {
            "server": resident_mb(server.pid),
            "engine": sum(resident_mb(int(pid)) for pid in children),
        }
    finally:
        server.terminate()
        server.wait()
    known = buffers(path, arguments.max_sessions, arguments.ctx_size)
    known["model file"] = os.path.getsize(path) / MB
    total = sum(processes.values())
    print(__doc__.split("\n\n", maxsplit=2)[2])
    for name, size in {**processes, **known}.items():
        print(f"{name:12}{size:10.0f} MB")
    rest = total - sum(known.values())
    print(f"{'the rest':12}{rest:10.0f} MB")
    print(
        json.dumps(
            {"benchmark": "memory", "target": arguments.model, "rest_mb": rest}
            | {"processes_mb": processes, "known_mb": known}
        )
    )


if __name__ == "__main__":
    main()
