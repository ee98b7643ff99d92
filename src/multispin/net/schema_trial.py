"""JSON Schemas of strangers are tried in a process of their own before the engine meets them.

Most of what a compilation costs is limited (lm/json_grammar.py), but not all of it: some keywords
keep it busy for minutes. What takes too long or too much memory here, or ends the process, is
refused, and nobody else has waited for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sys
import time
from collections.abc import Awaitable, Callable

from multispin.errors import BadInput
from multispin.lm.json_grammar import compile_schema, refusal, tokenizer_of

# Processor time. The engine compiles what passed at the beginning of its text, between two passes:
# nobody waits longer for it than for a prompt (BatchLimits.prefill_s).
MAX_COMPILE_S = 0.2
MAX_TRIAL_S = 10.0  # on a busy machine, the start of Python included
MAX_MEMORY_BYTES = 1 << 30
MAX_REMEMBERED = 256  # schemas that passed
MAX_PROCESSES = 2  # at a time
_TOO_COSTLY = "takes too long, or too much memory, to compile: simplify it"


class SchemaTrials:
    """What passed is remembered: applications send the same few schemas again and again.

    ``attempt`` answers with what is wrong with a schema; empty if nothing is.
    """

    def __init__(self, attempt: Callable[[str], Awaitable[str]] | None = None) -> None:
        self._attempt = attempt or try_apart
        # With the owner: how soon an answer comes would tell others what was sent. Oldest first.
        self._passed: dict[tuple[str, str], None] = {}
        self._places = asyncio.Semaphore(MAX_PROCESSES)

    async def check(self, schema: str, owner: str = "") -> None:
        """Raise BadInput for a schema that cannot be compiled, or not cheaply enough."""
        if (owner, schema) in self._passed:
            return
        async with self._places:
            error = await self._attempt(schema)
        if error:
            raise refusal(schema, error)
        self._passed[owner, schema] = None
        if len(self._passed) > MAX_REMEMBERED:
            del self._passed[next(iter(self._passed))]


async def try_apart(schema: str) -> str:
    """Compile it in a process of its own: what is wrong with it; empty if nothing is."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "multispin.net.schema_trial",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(MAX_TRIAL_S):
            answer, _ = await process.communicate(schema.encode())
    except TimeoutError:
        return _TOO_COSTLY
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    return answer.decode() if process.returncode == 0 else _TOO_COSTLY


def main() -> None:
    """Compile what stands on standard input; what is wrong with it goes to standard output."""
    resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    schema = sys.stdin.buffer.read().decode()
    # One token for each byte: what compilation costs does not depend on the vocabulary.
    tokenizer = tokenizer_of([*(bytes([byte]) for byte in range(256)), b""], [256])
    began = time.process_time()
    try:
        compile_schema(schema, tokenizer)
    except BadInput as error:
        print(error.remedy, end="")
        return
    if time.process_time() - began > MAX_COMPILE_S:
        print(_TOO_COSTLY, end="")


if __name__ == "__main__":
    main()
