"""The drafter that a command line asks for."""

from __future__ import annotations

import os

from multispin.catalog import find_model, progress_on_stderr
from multispin.cli import options
from multispin.client import DRAFTERS_WITHOUT_FILE
from multispin.net.drafting import REPLAY_PREFIX, DrafterOptions


def drafter_options(
    draft: str,
    *,
    threads: int | None,
    gpu_layers: int,
    num_sequences: int = 1,
    draft_s_per_token: float = 0.0,
    spectral_efficiency: float = 1.0,
    pads: bool = False,
    cell: str = "",
) -> DrafterOptions:
    """Find the drafter's file, pulling it from the catalog if need be."""
    path = None
    if draft not in DRAFTERS_WITHOUT_FILE and not draft.startswith(REPLAY_PREFIX):
        with progress_on_stderr() as progress:
            path = os.fspath(find_model(draft, progress=progress))
    return DrafterOptions(
        draft=draft,
        path=path,
        num_sequences=num_sequences,
        threads=options.num_threads(threads),
        gpu_layers=gpu_layers,
        draft_s_per_token=draft_s_per_token,
        spectral_efficiency=spectral_efficiency,
        pads=pads,
        cell=options.utf8("--cell", cell),
    )
