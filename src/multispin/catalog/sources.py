"""What the sources of model files have in common."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from multispin.catalog.models import Model
from multispin.errors import ModelUnavailable

# (folder, bytes still to be written there): raises NoSpace when they do not fit.
NeedSpace = Callable[[Path, int], None]
# (done_bytes, total_bytes)
Report = Callable[[int, int], None]


class SourceError(Exception):
    """This source has no file for us; its text says why, in a few words."""


class NoSpace(ModelUnavailable):
    """The disk is full: no other source would do better."""


@dataclass(frozen=True)
class Download:
    """A complete file, not yet verified, and the hash that its source announced."""

    path: Path
    sha256: str | None


class Source(Protocol):
    """Somewhere that model files come from."""

    @property
    def name(self) -> str: ...

    def offers(self, model: Model) -> bool:
        """Whether asking for ``model`` makes sense; no network."""
        ...

    def fetch(self, model: Model, folder: Path, need: NeedSpace, report: Report) -> Download:
        """Complete what ``folder`` already holds of the file; raise SourceError."""
        ...


def is_disk_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
