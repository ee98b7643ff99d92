"""One seed into independent random streams, the same for every policy and mode."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Streams(NamedTuple):
    """What one thing draws never moves what another draws: policies meet the same texts."""

    placement: np.random.Generator  # line of sight and shadowing, once
    fading: np.random.Generator
    agreement: np.random.Generator  # drafter and target


def random_streams(seed: int) -> Streams:
    children = np.random.SeedSequence(seed).spawn(len(Streams._fields))
    return Streams(*map(np.random.default_rng, children))
