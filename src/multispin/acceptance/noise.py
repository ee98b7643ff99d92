"""Counter-based noise: a pure function of (seed, absolute position, stream, token id).

Every token id has an Exp(1) variable E at every position; sampling is then the exponential race
argmin E_i / p_i, which is Gumbel-max with g = -log E.

The variables are built in groups, so that whole groups can be skipped without being hashed. By
the memorylessness of the exponential, if m = Exp(1)/128 sits at a uniformly chosen member of a
group of 128 and every other member has m + Exp(1), then the members are independent Exp(1). Hence
m, one hash per group, bounds every member of the group from below. Members of a group lie
``LANES`` ids apart, because a maximum over rows of ``LANES`` consecutive logits is what SIMD
computes best. Ids beyond the vocabulary are members too; they merely are never asked for.

    bits of a token id:   block (18..) | member (11..17) | lane (0..10);   group = block | lane
"""

from __future__ import annotations

import struct
from enum import IntEnum
from hashlib import blake2b
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

LANE_BITS: Final = 11
MEMBER_BITS: Final = 7
LANES: Final = 1 << LANE_BITS
MEMBERS: Final = 1 << MEMBER_BITS
BLOCK_BITS: Final = LANE_BITS + MEMBER_BITS

_WEYL: Final = 0x9E3779B97F4A7C15  # odd, 2^64 / golden ratio: the step of SplitMix64
_MASK64: Final = (1 << 64) - 1
_RESOLUTION_BITS: Final = 64 - MEMBER_BITS
_BELOW_ONE: Final = 1.0 - 2.0**-53


class Stream(IntEnum):
    """What the noise is for. Streams of one (seed, position) are independent of each other."""

    TARGET = 0  # the target's own token: coupled, plain sampling, the bonus of rejection
    DRAFT = 1  # the device's draft under rejection
    ACCEPT = 2  # the acceptance test of rejection
    RESIDUAL = 3  # the correction of rejection


class Key(NamedTuple):
    """128 bits that fix the noise of one (seed, position, stream)."""

    group: int
    token: int


def derive_key(seed: int, position: int, stream: Stream) -> Key:
    """BLAKE2b-128 of the little-endian (seed: u64, position: u64, stream: u8)."""
    message = struct.pack("<QQB", seed & _MASK64, position, stream)
    return Key(*struct.unpack("<QQ", blake2b(message, digest_size=16).digest()))


def num_groups(num_tokens: int) -> int:
    """How many groups ids 0..num_tokens-1 touch (group numbers are contiguous from 0)."""
    full, rest = divmod(num_tokens, 1 << BLOCK_BITS)
    return full * LANES + min(rest, LANES)


def group_members(groups: npt.NDArray[np.int64], num_tokens: int) -> npt.NDArray[np.int64]:
    """Ids [groups, members] in these groups; ids may exceed num_tokens - 1 at the end."""
    members = min(MEMBERS, -(-num_tokens // LANES))
    first = ((groups >> LANE_BITS) << BLOCK_BITS) | (groups & (LANES - 1))
    ids: npt.NDArray[np.int64] = first[:, None] + np.arange(0, members * LANES, LANES)
    return ids


def group_minima(key: Key, num: int) -> npt.NDArray[np.float64]:
    """The least E of each of the groups 0..num-1: min over members, Exp(1) / 128.  [num]"""
    x = np.arange(num, dtype=np.uint64)
    x *= _WEYL
    x += key.group
    mix(x)
    x >>= MEMBER_BITS
    minima = _exponential(x)
    minima *= 1.0 / MEMBERS
    return minima


def exponentials(key: Key, ids: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """E of the given token ids: independent Exp(1), relative resolution 2^-53 down to 2^-65.  [n]

    E_i = m_g for the one member that the group's hash names, m_g + Exp(1) for the others.
    """
    n = len(ids)
    x = np.empty(2 * n, dtype=np.uint64)  # groups, then tokens: hashed in one sweep
    group, token = x[:n], x[n:]
    token[:] = ids
    np.bitwise_and(token, LANES - 1, out=group)
    member: npt.NDArray[np.integer] | int = 0
    if n and ids.max() >= LANES:
        group |= (token >> BLOCK_BITS) << LANE_BITS
        member = (token >> LANE_BITS) & (MEMBERS - 1)
    x *= _WEYL
    group += key.group
    token += key.token
    mix(x)
    is_least = (group & (MEMBERS - 1)) == member
    x >>= MEMBER_BITS
    e = _exponential(x)
    least, excess = e[:n], e[n:]
    least *= 1.0 / MEMBERS
    excess[is_least] = 0.0
    least += excess
    return least


def uniform_bits(seed: int, position: int, stream: Stream) -> int:
    """One uniform 64-bit integer for a decision that has no token id."""
    return derive_key(seed, position, stream).token


def mix(x: npt.NDArray[np.uint64]) -> None:
    """SplitMix64's finaliser (Stafford's variant 13) in place: a bijection of 64-bit words."""
    t = x >> 30
    x ^= t
    x *= 0xBF58476D1CE4E5B9
    np.right_shift(x, 27, out=t)
    x ^= t
    x *= 0x94D049BB133111EB
    np.right_shift(x, 31, out=t)
    x ^= t


def _exponential(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """-log(1 - v), v = (bits + 1/2) / 2^57 in (0, 1). log1p keeps small values exact."""
    v = bits.astype(np.float64)
    v += 0.5
    v *= -(2.0**-_RESOLUTION_BITS)
    np.maximum(v, -_BELOW_ONE, out=v)  # rounding may have reached -1
    np.log1p(v, out=v)
    np.negative(v, out=v)
    return v
