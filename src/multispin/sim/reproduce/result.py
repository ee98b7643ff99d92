"""What a reproduction is made of: figures of panels of curves, and answers to claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from multispin.control.problem import Floats

Kind = Literal["planned", "simulated"]


@dataclass(frozen=True, eq=False)
class Curve:
    """Goodput over x, in tokens/s: planned by the formulas of control/, or simulated."""

    label: str
    kind: Kind
    x: tuple[float, ...]
    samples: Floats  # [X, draws]

    @cached_property
    def mean(self) -> Floats:
        return np.asarray(self.samples.mean(axis=1))

    @cached_property
    def stderr(self) -> Floats:
        """Of the mean."""
        return _stderr(self.samples)

    def at(self, x: float) -> float:
        return float(self.mean[self.x.index(x)])

    def text(self, x: float) -> str:
        return f"{self.at(x):.0f} ± {self.stderr[self.x.index(x)]:.0f} tokens/s"

    def gain(self, over: Curve, x: float) -> str:
        """Ratio of the means at x, less one, with the standard error of a ratio r = a/b:
        that of a - r b over the mean of b (delta method; draws are common to both).
        """
        ours, theirs = (curve.samples[curve.x.index(x)] for curve in (self, over))
        ratio = ours.mean() / theirs.mean()
        stderr = _stderr((ours - ratio * theirs)[None])[0] / theirs.mean()
        return f"{100 * (ratio - 1):+.0f} ± {100 * stderr:.0f} %"


def _stderr(samples: Floats) -> Floats:
    return np.asarray(samples.std(axis=1, ddof=1) / samples.shape[1] ** 0.5)


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    x_label: str  # with its unit
    curves: tuple[Curve, ...]
    is_log: bool = False  # of x
    is_log_y: bool = False

    def curve(self, label: str, kind: Kind = "planned") -> Curve:
        return next(c for c in self.curves if (c.label, c.kind) == (label, kind))


@dataclass(frozen=True)
class Figure:
    """One picture; ``name`` is that of its files."""

    name: str
    panels: tuple[Panel, ...]
    title: str | None = None


@dataclass(frozen=True)
class Claim:
    """Something to be shown, what came out here, and what the paper says of it, if anything."""

    claim: str
    here: str
    paper: str = ""


@dataclass(frozen=True)
class Reproduction:
    """Everything that ``multispin reproduce NAME`` found out."""

    name: str
    seed: int
    draws: int
    parameters: Mapping[str, str]  # all that the figures depend on, in words and units
    figures: tuple[Figure, ...]
    claims: tuple[Claim, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One row for each point of each curve: the CSV."""
        return [
            {
                "figure": figure.name,
                "panel": panel.title,
                "curve": curve.label,
                "kind": curve.kind,
                "x_label": panel.x_label,
                "x": x,
                "goodput_tokens_per_s": mean,
                "stderr_tokens_per_s": stderr,
                "draws": self.draws,
                "seed": self.seed,
            }
            for figure in self.figures
            for panel in figure.panels
            for curve in panel.curves
            for x, mean, stderr in zip(
                curve.x, curve.mean.tolist(), curve.stderr.tolist(), strict=True
            )
        ]

    def as_object(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "name": self.name,
            "seed": self.seed,
            "draws": self.draws,
            "parameters": dict(self.parameters),
            "points": self.rows(),
            "claims": [asdict(claim) for claim in self.claims],
        }


def lead(ours: Curve, theirs: Curve) -> str:
    """Where ours is above theirs; the places where they cross lie on lines between the points."""
    ahead = (ours.mean - theirs.mean).tolist()
    words = ("behind", "ahead")
    text = words[ahead[0] > 0]
    for i in range(1, len(ahead)):
        before, after = ahead[i - 1], ahead[i]
        if (before > 0) != (after > 0):
            x = ours.x[i - 1] + (ours.x[i] - ours.x[i - 1]) * before / (before - after)
            text += f" up to {_short(x)}, then {words[after > 0]}"
    return text


def _short(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.2g}"
