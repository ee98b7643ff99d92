"""Which rows are worth a place in the next forward pass: mode window.

The server never waits. Every session gets one row of its own, which commits one token without any
draft, as far as the pass has room; a row for each drafted token that has arrived is worth the
probability that it and all before it are accepted. Sorted by worth, with V(n) = the n best rows'
worth together and T(n) the measured time of a pass with n rows, the K sessions' pass takes

    n* = argmax over n >= K of V(n) / T(n)

tokens per second, or the least n that comes within TOLERANCE of it: a short pass keeps fewer people
waiting, and promises less on the strength of estimates. Worth falls along a draft, so that any n
best rows are whole beginnings of drafts. T has steps: where a few rows more cost nothing, they are
taken. A session served without its draft loses nothing by it: if the server's token is the one that
was drafted, the rest of the draft stays of use.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

TOLERANCE = 0.02

Floats = npt.NDArray[np.float64]


def choose_rows(
    survival: Floats, num_drafted: npt.NDArray[np.int64], pass_s: Floats
) -> npt.NDArray[np.int64]:
    """Rows of each session [K]: 0, it waits; 1, no draft; 1 + n, with its first n drafted tokens.

    ``survival`` holds the drafted tokens' worth, session after session [sum num_drafted], below 1;
    ``num_drafted`` [K], longest waiting session first; ``pass_s[n - 1]`` the seconds of n rows.
    """
    num_sessions = len(num_drafted)
    worth = np.concatenate([np.ones(num_sessions), np.minimum(survival, 1.0 - 1e-9)])
    owner = np.concatenate(
        [np.arange(num_sessions), np.repeat(np.arange(num_sessions), num_drafted)]
    )
    order = np.argsort(-worth, kind="stable")[: len(pass_s)]
    rate = np.cumsum(worth[order]) / pass_s[: len(order)]
    first = min(num_sessions, len(rate)) - 1
    enough = rate[first:] >= (1.0 - TOLERANCE) * rate[first:].max()
    num_rows = first + int(enough.argmax()) + 1
    return np.bincount(owner[order[:num_rows]], minlength=num_sessions)
