"""The families of figures by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

from multispin.errors import BadInput
from multispin.sim.reproduce.crossover import crossover
from multispin.sim.reproduce.multi_spin import multi_spin
from multispin.sim.reproduce.payload import payload
from multispin.sim.reproduce.result import Reproduction
from multispin.sim.reproduce.sweep import Tell
from multispin.sim.reproduce.window import window


class Family(NamedTuple):
    run: Callable[[int, int, Tell], Reproduction]  # draws, seed
    draws: int  # unless told otherwise
    shows: str


FAMILIES: MappingProxyType[str, Family] = MappingProxyType(
    {
        "multi-spin": Family(
            multi_spin,
            30,
            "the paper's figures: goodput over draft length, verification time, bandwidth, devices",
        ),
        "crossover": Family(
            crossover, 20, "where a server does better alone, or with the drafter on it as well"
        ),
        "payload": Family(payload, 30, "1024 probabilities, a probability or an id per token"),
        "window": Family(window, 4, "rounds, stop-and-wait and window over the round trip"),
    }
)


def run(name: str, draws: int | None, seed: int, tell: Tell) -> Reproduction:
    """The reproduction of that name, with so many draws or as many as it usually takes."""
    family = find(name)
    return family.run(family.draws if draws is None else draws, seed, tell)


def find(name: str) -> Family:
    """Raises BadInput for a name that there is not."""
    if name not in FAMILIES:
        near = difflib.get_close_matches(name, FAMILIES, n=1, cutoff=0.0)
        raise BadInput("NAME", name, f"did you mean {near[0]}? choose one of {', '.join(FAMILIES)}")
    return FAMILIES[name]
