"""From the name of a model to the model."""

from __future__ import annotations

from pathlib import Path

import msgspec

from multispin.core.cost import CostEngine, RecordEngine, parse_costs
from multispin.core.engine import Engine
from multispin.core.warmup import time_passes
from multispin.errors import BadInput
from multispin.lm.llama import LlamaModel
from multispin.lm.ngram import NgramModel
from multispin.lm.record import Record, read_record
from multispin.lm.reproducible import self_check

COST_PREFIX = "cost:"


class TargetOptions(msgspec.Struct, frozen=True):
    """How to load the server's model.

    ``path`` is the file that the catalog found; ``replay`` a record whose texts go on as recorded.
    """

    target: str
    path: str | None
    num_sequences: int
    context_length: int
    threads: int
    gpu_layers: int
    reproducible: bool
    max_rows: int
    replay: str | None = None


def load_engine(options: TargetOptions) -> Engine | CostEngine:
    """The engine of a model or of a cost model, its passes timed, all that is slow done."""
    engine: Engine | CostEngine
    if options.target.startswith(COST_PREFIX):
        engine = _load_costs(options)
    else:
        engine = load_target(options)
        engine.grammars.prepare()
    engine.info = msgspec.structs.replace(engine.info, passes=time_passes(engine))
    return engine


def load_target(options: TargetOptions) -> Engine:
    """Load, and prove the reproducible mode where it is asked for."""
    if options.path is None:
        model = NgramModel.from_text(
            num_sequences=options.num_sequences, context_length=options.context_length
        )
        record = _replayed(options, model.vocabulary.fingerprint)
        return Engine(model, max_rows=options.max_rows, reproducible=True, record=record)
    llama = LlamaModel(
        path=options.path,
        name=options.target,
        num_sequences=options.num_sequences,
        context_length=options.context_length,
        threads=options.threads,
        gpu_layers=options.gpu_layers,
        reproducible=options.reproducible,
        max_batch_rows=options.max_rows,
    )
    if options.reproducible:
        self_check(llama)
    record = _replayed(options, llama.vocabulary.fingerprint)
    return Engine(
        llama, max_rows=options.max_rows, reproducible=options.reproducible, record=record
    )


def _replayed(options: TargetOptions, fingerprint: str) -> Record | None:
    if options.replay is None:
        return None
    record = read_record(options.replay, "--replay")
    if record.fingerprint != fingerprint:
        raise BadInput(
            "--replay",
            options.replay,
            f"was recorded with {record.target}, whose vocabulary differs from {options.target}'s",
        )
    return record


def _load_costs(options: TargetOptions) -> CostEngine:
    """A cost model; the n-gram model writes the texts where no record does."""
    path = Path(options.target.removeprefix(COST_PREFIX))
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise BadInput("--target", options.target, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadInput("--target", options.target, "is not UTF-8 text") from None
    costs = parse_costs(text, str(path))
    engine: Engine | RecordEngine
    if costs.record is None:
        engine = load_target(msgspec.structs.replace(options, target="ngram", path=None))
    else:
        engine = RecordEngine(
            read_record(path.parent / costs.record, f"{path}: cost.record"),
            num_sequences=options.num_sequences,
            context_length=options.context_length,
            max_rows=options.max_rows,
        )
    return CostEngine(engine, costs, options.target)
