from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from catalog_helpers import CONTENT
from fake_hub import FakeHub


@pytest.fixture
def make_hub() -> Iterator[Callable[..., FakeHub]]:
    hubs: list[FakeHub] = []

    def make(content: bytes = CONTENT, **faults: Any) -> FakeHub:
        hubs.append(FakeHub(content, **faults))
        return hubs[-1]

    yield make
    for hub in hubs:
        hub.close()
