"""`multispin record`: what a target writes and a drafter proposes, for replays."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from multispin.cli import options
from multispin.errors import BadInput

if TYPE_CHECKING:
    from multispin.lm.record import Record

TARGET_SEQUENCES = 16  # texts written at a time
DRAFT_SEQUENCES = 32  # a path, and continuations that are drafted at a time
MAX_ROWS = 64


def record(
    target: Annotated[
        str, typer.Option(help="Large model: catalog name, GGUF path, hf:owner/repo/file, ngram.")
    ],
    draft: Annotated[
        str, typer.Option(help="Drafter: catalog name, GGUF path, hf:owner/repo/file, ngram.")
    ],
    out: Annotated[str, typer.Option(metavar="FILE.record", help="File to write; must be new.")],
    prompts: options.OptionalPrompts = None,
    human_eval: Annotated[
        int | None, typer.Option(help="Take the first so many prompts of HumanEval.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Use the target's chat template.")] = False,
    max_tokens: options.MaxTokens = 128,
    ctx_size: Annotated[int, typer.Option(help="Tokens of the longest text.")] = 1024,
    threads: options.Threads = None,
    gpu_layers: options.GpuLayers = 0,
) -> None:
    """Record texts of a model pair at temperature 0, for replay: and cost: and serve --replay."""
    options.check_writing(0, max_tokens, None)
    if not 64 <= ctx_size <= 1 << 20:
        raise BadInput("--ctx-size", ctx_size, f"must lie between 64 and {1 << 20}")
    if draft in ("lookup", "none") or draft.startswith("replay:"):
        raise BadInput("--draft", draft, "takes no time and needs no record; take a model or ngram")
    _check_out(Path(out))
    texts = _texts(prompts, human_eval)
    recorded = _record(target, draft, texts, chat, max_tokens, ctx_size, threads, gpu_layers)
    try:
        _write(Path(out), recorded)
    except OSError as error:
        raise BadInput("--out", out, f"cannot be written: {error.strerror}") from None
    _tell(
        f"wrote {out}: {len(recorded.texts)} texts, {recorded.num_tokens} tokens, of which "
        f"{recorded.draft} foretells {recorded.agreement:.1%}, in "
        f"{recorded.draft_s_per_token * 1e3:.3g} ms per token"
    )


def _texts(prompts: str | None, human_eval: int | None) -> list[str]:
    from multispin.bench.profile import default_prompts
    from multispin.cli import prompts as sources

    if prompts is not None and human_eval is not None:
        raise BadInput("--human-eval", human_eval, "give it or --prompts, not both")
    if human_eval is not None:
        return sources.human_eval(human_eval)
    texts = default_prompts() if prompts is None else list(sources.read_prompts(prompts))
    if not texts:
        raise BadInput("--prompts", prompts, "holds no prompt; write one a line")
    return texts


def _record(
    target: str,
    draft: str,
    texts: list[str],
    chat: bool,
    max_tokens: int,
    ctx_size: int,
    threads: int | None,
    gpu_layers: int,
) -> Record:
    from multispin.bench.profile import load_draft_model, read_prompt, shown_name
    from multispin.bench.record import record_texts
    from multispin.catalog import find_model, progress_on_stderr
    from multispin.cli.drafter import drafter_options
    from multispin.cli.serve import TARGETS_WITHOUT_FILE
    from multispin.net.loading import TargetOptions, load_target

    path = None
    if target not in TARGETS_WITHOUT_FILE:
        with progress_on_stderr() as progress:
            path = os.fspath(find_model(target, progress=progress))
    drafting = drafter_options(
        draft, threads=threads, gpu_layers=gpu_layers, num_sequences=DRAFT_SEQUENCES
    )
    drafting = msgspec.structs.replace(drafting, context_length=ctx_size)
    _tell(f"loading {target} and {draft}")
    engine = load_target(
        TargetOptions(
            target=target,
            path=path,
            num_sequences=TARGET_SEQUENCES,
            context_length=ctx_size,
            threads=options.num_threads(threads),
            gpu_layers=gpu_layers,
            reproducible=False,
            max_rows=MAX_ROWS,
        )
    )
    model = load_draft_model(drafting, engine)
    read = [read_prompt(engine, text, chat=chat) for text in texts]
    return record_texts(engine, model, shown_name(draft), read, max_tokens, _tell)


def _check_out(out: Path) -> None:
    """Before minutes of recording, not after them."""
    if os.path.lexists(out):
        raise BadInput("--out", out, "exists already; remove it or name another file")
    if not out.parent.is_dir():
        raise BadInput("--out", out, f"there is no folder {out.parent}; make it first")


def _write(out: Path, recorded: Record) -> None:
    from multispin.lm.record import write_record

    write_record(out, recorded)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
