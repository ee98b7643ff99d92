"""What verification answers."""

from __future__ import annotations

from typing import NamedTuple


class Verdict(NamedTuple):
    """``num_accepted`` drafted tokens are committed, then ``token``.

    ``token`` is a correction if a drafted token was rejected, else a bonus.
    """

    num_accepted: int
    token: int
