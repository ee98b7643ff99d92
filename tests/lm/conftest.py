from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from multispin.catalog import find_model
from multispin.lm.llama import LlamaModel


@pytest.fixture(scope="session")
def small_model_path() -> Path:
    return find_model("smollm2-135m")


@pytest.fixture(scope="module")
def llama(small_model_path: Path) -> Iterator[LlamaModel]:
    model = LlamaModel(
        path=small_model_path, name="small", num_sequences=6, context_length=512, threads=2
    )
    yield model
    model.close()


@pytest.fixture(scope="module")
def reproducible_llama(small_model_path: Path) -> Iterator[LlamaModel]:
    model = LlamaModel(
        path=small_model_path,
        name="small",
        num_sequences=12,
        context_length=480,
        threads=2,
        reproducible=True,
    )
    yield model
    model.close()
