"""A record of random texts, for benchmarks that look at what stands around a model."""

from __future__ import annotations

import numpy as np

from multispin.lm.ngram import NgramModel
from multispin.lm.record import FORMAT, NO_TOKEN, Record, RecordedText

# A drafted token is the target's with the probability that the drafter names: .77 on average.
CONFIDENCES = (0.55, 0.8, 0.95)
LETTERS = (ord("a"), ord("z") + 1)
WRONG = ord("?")


def random_record(
    num_texts: int,
    num_tokens: int,
    confidences: tuple[float, ...] = CONFIDENCES,
    depth: int = 8,  # tokens that are drafted behind each position
) -> Record:
    """Letters without sense: nothing repeats itself, so that prompt lookup is of no use."""
    model = NgramModel.from_text(num_sequences=1)
    vocabulary = model.vocabulary
    rng = np.random.default_rng(0)
    texts = []
    for number in range(num_texts):
        prompt = f"Device {number}: "
        path = rng.integers(*LETTERS, num_tokens, dtype=np.int32)
        likely = rng.choice(confidences, num_tokens)
        drafted = np.where(rng.random(num_tokens) < likely, path, WRONG)
        texts.append(
            RecordedText(
                prompt=prompt,
                prompt_ids=model.tokenize(prompt).astype("<i4").tobytes(),
                path=path.astype("<i4").tobytes(),
                drafts=_ahead(drafted, depth, NO_TOKEN).astype("<i4").tobytes(),
                confidences=_ahead(likely, depth, 0.0).astype("<f2").tobytes(),
            )
        )
    return Record(
        format=FORMAT,
        target="random",
        draft="random",
        fingerprint=vocabulary.fingerprint,
        pieces=vocabulary.pieces,
        offsets=np.asarray(vocabulary.offsets, "<i8").tobytes(),
        end_ids=[],
        bos_id=None,
        chat_template=None,
        special_pieces={},
        depth=depth,
        draft_s_per_token=0.0,
        texts=texts,
    )


def _ahead(values: np.ndarray, depth: int, beyond: float) -> np.ndarray:
    """Row i: the ``depth`` values from place i on [N, depth]."""
    padded = np.append(values, np.full(depth - 1, beyond, values.dtype))
    return np.lib.stride_tricks.sliding_window_view(padded, depth)
