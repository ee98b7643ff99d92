"""What may be shown on a terminal."""

from __future__ import annotations

import os
import sys

# All but newline and tab: C0, DEL and C1, which terminals take for orders.
_CONTROLS = dict.fromkeys([*range(32), *range(127, 160)], "\ufffd")
_CONTROLS |= {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): ""}


def printable(text: str) -> str:
    """What a model or a device wrote, without orders to the terminal that shows it."""
    return text.translate(_CONTROLS)


def dim(text: str) -> str:
    """Less than the text around it, where the terminal can."""
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM", "dumb") == "dumb"
    return text if plain or not sys.stdout.isatty() else f"\x1b[2m{text}\x1b[22m"
