"""From the name of a model to the model."""

from __future__ import annotations

import msgspec
import numpy as np

from multispin.core.engine import Engine
from multispin.lm.base import Rows
from multispin.lm.llama import LlamaModel
from multispin.lm.ngram import NgramModel
from multispin.lm.reproducible import self_check


class TargetOptions(msgspec.Struct, frozen=True):
    """How to load the server's model. ``path`` is the file that the catalog found."""

    target: str
    path: str | None
    num_sequences: int
    context_length: int
    threads: int
    gpu_layers: int
    reproducible: bool
    max_rows: int


def load_target(options: TargetOptions) -> Engine:
    """Load, and prove the reproducible mode where it is asked for."""
    if options.path is None:
        model = NgramModel.from_text(
            num_sequences=options.num_sequences, context_length=options.context_length
        )
        return Engine(model, max_rows=options.max_rows, reproducible=True)
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
    else:
        _try_batch(llama)
    return Engine(llama, max_rows=options.max_rows, reproducible=options.reproducible)


def _try_batch(model: LlamaModel) -> None:
    """A build that does not fit the processor crashes in its first batch of several rows: better
    here, where the server can say so, than under the first session."""
    num_rows = min(4, model.context_length)
    position = np.arange(num_rows, dtype=np.int32)
    model.forward(Rows(position * 0, position, position * 0, np.ones(num_rows, np.bool_)))
    model.free(0)
