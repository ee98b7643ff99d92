"""From a well-formed message to one that is not, in the ways that break parsers."""

from __future__ import annotations

import math
import random
from typing import Any

HOSTILE: tuple[Any, ...] = (
    *(0, 1, -1, 7, 255, 256, 257, 1 << 15, 1 << 31, (1 << 31) - 1, -(1 << 31), 1 << 32),
    *((1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63)),
    *(0.0, -0.0, 0.5, 1e-300, 1e300, -1e300, math.inf, -math.inf, math.nan),
    *(None, True, False, "", "\x00", "x" * 70, "\ud7ff\U0010ffff", "x" * 5000, "window", "coupled"),
    *(b"", b"\xff", b"\x00" * 8, b"\xff" * 600, [], [[]], {}, {"": None}, [0] * 40),
)
BYTES = (0x00, 0x01, 0x7F, 0x80, 0x90, 0x9F, 0xC0, 0xC1, 0xC4, 0xC6, 0xCF, 0xD9, 0xDD, 0xDF, 0xFF)


def mutate_tree(rng: random.Random, tree: Any, strange: tuple[Any, ...] = HOSTILE) -> Any:
    """A document of lists, maps and leaves in which something has become something else."""
    if isinstance(tree, list) and tree and rng.random() < 0.9:
        return _mutate_list(rng, list(tree), strange)
    if isinstance(tree, dict) and tree and rng.random() < 0.9:
        changed = dict(tree)
        key = rng.choice(list(changed))
        if rng.random() < 0.1:
            del changed[key]
        elif rng.random() < 0.1:
            changed[rng.choice(("", "x", "temperature", "\x00"))] = rng.choice(strange)
        else:
            changed[key] = mutate_tree(rng, changed[key], strange)
        return changed
    if isinstance(tree, int) and rng.random() < 0.5:
        moved = tree + rng.choice((-2, -1, 1, 2, 16, 1000, -1000))
        return min(max(moved, -(1 << 63)), (1 << 64) - 1)  # what MessagePack can say
    if isinstance(tree, bytes) and tree and rng.random() < 0.5:
        return mutate_bytes(rng, tree)
    return rng.choice(strange)


def _mutate_list(rng: random.Random, items: list[Any], strange: tuple[Any, ...]) -> list[Any]:
    at = rng.randrange(len(items))
    match rng.randrange(12):
        case 0:
            del items[at]
        case 1:
            items.insert(at, rng.choice(strange))
        case 2:
            items.append(items[at])
        case 3:
            del items[at:]
        case _:
            items[at] = mutate_tree(rng, items[at], strange)
    return items


def mutate_bytes(rng: random.Random, data: bytes, other: bytes = b"") -> bytes:
    """One to four small wounds; or the beginning of it grown together with the end of another."""
    wounded = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(wounded) + 1)
        length = rng.choice((1, 1, 2, 4, 8, 64))
        match rng.randrange(7):
            case 0 if at < len(wounded):
                wounded[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(wounded):
                wounded[at] = rng.choice(BYTES)
            case 2:
                del wounded[at : at + length]
            case 3:
                wounded[at:at] = rng.randbytes(length)
            case 4:
                wounded[at:at] = wounded[at : at + length]
            case 5:
                del wounded[at:]
            case 6:
                wounded[at:] = other[rng.randrange(len(other) + 1) :]
    return bytes(wounded)
