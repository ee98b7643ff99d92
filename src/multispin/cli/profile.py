"""`multispin profile`: measure a target and a drafter on this machine, write a CELL.toml."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from multispin.cli import options
from multispin.errors import BadInput
from multispin.types import SamplingParams

if TYPE_CHECKING:
    from multispin.bench.pair import Sampling
    from multispin.bench.profile import Profile
    from multispin.core.engine import Engine

NUM_SEQUENCES = 8
MAX_DRAFT_LENGTH = 32
MIN_CONTEXT = 256  # what measuring batches needs


def profile(
    target: Annotated[
        str, typer.Option(help="Large model: catalog name, GGUF path, hf:owner/repo/file, ngram.")
    ],
    draft: options.Draft = "lookup",
    prompts: options.OptionalPrompts = None,
    chat: Annotated[bool, typer.Option("--chat", help="Use the target's chat template.")] = False,
    max_tokens: Annotated[int, typer.Option(help="Most tokens to write for each prompt.")] = 64,
    draft_length: Annotated[
        int, typer.Option(help="Tokens per draft while acceptance is measured.")
    ] = 8,
    temperature: options.Temperature = 0.0,
    seed: Annotated[int, typer.Option(help="Same seed, same texts.")] = 0,
    out: Annotated[
        str | None,
        typer.Option(metavar="CELL.toml", help="File to write, which must be new; - is stdout."),
    ] = None,
    ctx_size: Annotated[int, typer.Option(help="Tokens of the longest text.")] = 1024,
    threads: options.Threads = None,
    gpu_layers: options.GpuLayers = 0,
    as_json: options.Json = False,
) -> None:
    """Measure verification, drafting and acceptance of a model pair; write a CELL.toml."""
    params = SamplingParams(temperature)
    params.validate()
    options.check_writing(draft_length, max_tokens, seed)
    _check(draft, draft_length, ctx_size)
    _check_out(out, as_json)

    from multispin.bench import pair
    from multispin.bench.profile import cell_toml, default_prompts
    from multispin.cli.prompts import read_prompts

    texts = default_prompts() if prompts is None else list(read_prompts(prompts))
    if not texts:
        raise BadInput("--prompts", prompts, "holds no prompt; write one a line")

    sampling = pair.Sampling(
        params, options.acceptance_rule(None, params), seed, max_tokens, draft_length
    )
    measured = _measure(target, draft, texts, sampling, chat, ctx_size, threads, gpu_layers)
    cell = cell_toml(measured, datetime.now(UTC))
    if out not in (None, "-"):
        _write(Path(str(out)), cell)
    if as_json:
        print(json.dumps({**measured.report(), "out": out, "cell_toml": cell}, allow_nan=False))
        return
    _show(measured)
    if out in (None, "-"):
        print(cell, end="")
    else:
        print(f"wrote {out}; try: multispin plan {out} --compare", file=sys.stderr)


def _measure(
    target: str,
    draft: str,
    texts: list[str],
    sampling: Sampling,
    chat: bool,
    ctx_size: int,
    threads: int | None,
    gpu_layers: int,
) -> Profile:
    from multispin.bench.profile import load_drafter, measure, this_machine, tokenize_prompt
    from multispin.catalog import find_model, progress_on_stderr
    from multispin.cli.drafter import drafter_options
    from multispin.cli.serve import TARGETS_WITHOUT_FILE
    from multispin.net.loading import TargetOptions, load_target

    path = None
    if target not in TARGETS_WITHOUT_FILE:
        with progress_on_stderr() as progress:
            path = os.fspath(find_model(target, progress=progress))
    drafting = drafter_options(draft, threads=threads, gpu_layers=gpu_layers)
    drafting = msgspec.structs.replace(drafting, context_length=ctx_size)
    _tell(f"loading {target} and {draft}")
    engine: Engine = load_target(
        TargetOptions(
            target=target,
            path=path,
            num_sequences=NUM_SEQUENCES,
            context_length=ctx_size,
            threads=options.num_threads(threads),
            gpu_layers=gpu_layers,
            reproducible=False,
            max_rows=64,
        )
    )
    drafter = load_drafter(drafting, engine)
    machine = this_machine(options.num_threads(threads), _library(path or drafting.path))
    tokens = [tokenize_prompt(engine, text, chat=chat) for text in texts]
    return measure(engine, drafter, tokens, sampling, machine, draft, _tell)


def _check(draft: str, draft_length: int, ctx_size: int) -> None:
    if draft == "none" or draft.startswith("replay:"):
        raise BadInput("--draft", draft, "drafts nothing of its own; take a model, lookup or ngram")
    if not 1 <= draft_length <= MAX_DRAFT_LENGTH:
        raise BadInput("--draft-length", draft_length, f"must be 1 to {MAX_DRAFT_LENGTH}")
    if ctx_size < MIN_CONTEXT:
        raise BadInput("--ctx-size", ctx_size, f"must be at least {MIN_CONTEXT}")


def _check_out(out: str | None, as_json: bool) -> None:
    """Before minutes of measuring, not after them."""
    if out is None:
        return
    if out == "-":
        if as_json:
            raise BadInput("--out", out, "standard output is for --json; name a file")
        return
    if os.path.lexists(out):
        raise BadInput("--out", out, "exists already; remove it or name another file")
    if not Path(out).parent.is_dir():
        raise BadInput("--out", out, f"there is no folder {Path(out).parent}; make it first")


def _write(path: Path, cell: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(cell)
    except OSError as error:
        if not isinstance(error, FileExistsError):
            path.unlink(missing_ok=True)  # a full disk leaves a piece of it
        print(cell, end="", file=sys.stderr)  # minutes of work
        raise BadInput("--out", path, f"cannot be written: {error.strerror}") from None


def _library(path: str | None) -> str:
    """What computes: llama.cpp's build where a file is loaded."""
    if path is None:
        return "built-in n-gram model"
    from multispin.lm.llama_library import load_library

    described = load_library().describe()
    return f"llama.cpp, {described['kind']} {described['version']}; {described['system']}"


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _show(measured: Profile) -> None:
    """Tables for people, on standard error: the cell may go to standard output."""
    from rich.console import Console
    from rich.table import Table

    console = Console(stderr=True)
    table = Table(title=f"verification by {measured.target}, ms")
    for heading in ("rows", "sequences", "measured", "fit"):
        table.add_column(heading, justify="right")
    for batch in measured.batches:
        fitted = measured.curve.seconds(batch.rows, batch.sequences)
        table.add_row(
            str(batch.rows),
            str(batch.sequences),
            f"{batch.seconds * 1e3:.2f}",
            f"{fitted * 1e3:.2f}",
        )
    console.print(table)
    curve = measured.curve
    console.print(
        f"fit: {curve.fixed_s * 1e3:.3f} ms + {curve.per_device_s * 1e3:.3f} ms per device + "
        f"{curve.per_token_s * 1e3:.3f} ms per row; off by {curve.mean_error:.1%} on average, "
        f"{curve.max_error:.1%} at most",
        highlight=False,
    )
    overall = measured.overall
    positions = " ".join(f"{share:.2f}" for share in overall.stats.acceptance_by_position)
    console.print(
        f"{measured.draft}: {overall.draft_s_per_token * 1e3:.3f} ms per drafted token, acceptance "
        f"{overall.acceptance:.3f}, {overall.stats.mean_acceptance_length:.2f} tokens per "
        f"verification, accepted up to position {positions}; "
        f"nothing to propose {overall.num_empty} times",
        highlight=False,
    )
