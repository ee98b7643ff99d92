"""A small record: the n-gram target, and a weaker one drafting for it."""

from __future__ import annotations

from functools import cache

import numpy as np

from multispin.bench.record import Prompt, record_texts
from multispin.core.engine import Engine
from multispin.lm.ngram import NgramModel
from multispin.lm.record import Record
from multispin.types import TokenIds

PROMPTS = ("The phone drafts and the server ", "A", "Once upon a time", "Every token ")
MAX_TOKENS = 40


def new_engine(num_sequences: int = 3, record: Record | None = None) -> Engine:
    model = NgramModel.from_text(num_sequences=num_sequences, context_length=512)
    return Engine(model, max_rows=64, record=record)


def draft_model(num_sequences: int = 5) -> NgramModel:
    return NgramModel.from_text(order=2, num_sequences=num_sequences)


@cache
def small_record(prompts: tuple[str, ...] = PROMPTS, max_tokens: int = MAX_TOKENS) -> Record:
    engine = new_engine()
    read = [Prompt(text, engine.tokenize(text, parse_special=False)) for text in prompts]
    return record_texts(engine, draft_model(), "weaker", read, max_tokens, lambda line: None)


def ids(data: bytes) -> TokenIds:
    return np.frombuffer(data, np.dtype("<i4"))
