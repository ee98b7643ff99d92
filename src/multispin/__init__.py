"""Devices draft, one server verifies, and the text is exactly the large model's.

`Client` and `AsyncClient` write texts on a server, `solve` plans a cell: docs/python.md. What they
need is imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from multispin.errors import BadInput, MultispinError, PeerError

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "BadInput",
    "Client",
    "Commit",
    "Completion",
    "MultispinError",
    "PeerError",
    "Replaces",
    "Stream",
    "Token",
    "solve",
]

if TYPE_CHECKING:
    from multispin.cell import solve
    from multispin.client import (
        AsyncClient,
        AsyncStream,
        Client,
        Commit,
        Completion,
        Stream,
        Token,
    )
    from multispin.core.reading import Replaces
else:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = "multispin.cell" if name == "solve" else "multispin.client"
        return getattr(import_module(home), name)

    def __dir__() -> list[str]:
        return __all__
