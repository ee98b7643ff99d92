"""How often a device got fewer than n tokens in D seconds, counted in a trace and by a Gaussian.

Counted: a window of D seconds begins with each verdict of the device, where its next round begins,
and holds the tokens of the verdicts after it; windows that outlast the trace are left out. The
estimate is the share with fewer than n tokens. Windows overlap, which makes it no worse than
windows side by side. Its error is that of the means of up to 20 batches of windows in a row, each
at least five windows long, so that it covers fading and prompts that are shorter than a batch. It
is never given below 1/m, m the windows that fit side by side: less than that has not been seen.

Gaussian: tokens per verdict of mean m and variance v, times between verdicts of mean T and variance
u, all as if independent of each other and of those before. R rounds end in time:

    P(R >= r) = Phi((D - r T) / sqrt(r u))
    P(outage) = sum_r P(R = r) Phi((n - 1/2 - r m) / sqrt(r v))

At u = 0 that is R = floor(D/T), as in control/outage.py; m, v, T, u are those of the trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from multispin.control.outage import Floats, Lengths, Outage, gaussian_outage, normal_cdf
from multispin.sim.trace import Trace

MAX_BATCHES = 20
BATCH_WINDOWS = 5
_IN_TIME = 1 + 1e-9


class InferenceOutage(NamedTuple):
    """Over the K devices; NaN where the trace is too short to tell."""

    simulated: Floats
    stderr: Floats
    gaussian: Floats
    num_windows: Lengths  # side by side


class Windows:
    """What one device got in windows of ``deadline_s``, and how its verdicts came."""

    def __init__(self, at_s: Floats, committed: npt.ArrayLike, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self.at_s, self.committed = at_s, np.asarray(committed, dtype=np.int64)
        until = at_s + deadline_s * _IN_TIME
        num = int((until <= at_s[-1] * _IN_TIME).sum()) if len(at_s) else 0
        written = np.cumsum(self.committed)
        self.tokens = written[np.searchsorted(at_s, until[:num], side="right") - 1] - written[:num]
        self.num_apart = int((at_s[-1] - at_s[0]) / deadline_s * _IN_TIME) if num else 0

    def simulated(self, tokens: npt.ArrayLike) -> tuple[Floats, Floats]:
        """Share of windows with fewer than ``tokens`` [n], and its standard error [n]."""
        num_batches = min(MAX_BATCHES, self.num_apart // BATCH_WINDOWS)
        share = _share_below(self.tokens, tokens)
        if num_batches < 2:
            return share, np.full_like(share, np.nan)
        batches = np.array_split(self.tokens, num_batches)
        spread = np.std([_share_below(batch, tokens) for batch in batches], axis=0, ddof=1)
        return share, np.maximum(spread / np.sqrt(num_batches), 1.0 / self.num_apart)

    def gaussian(self, tokens: npt.ArrayLike) -> Floats:
        """P(fewer than ``tokens`` [n]) from the moments of this device's verdicts."""
        asked = np.asarray(tokens)
        if len(self.at_s) < 2:
            return np.full(asked.shape, np.nan)
        between_s = np.diff(self.at_s)
        round_s, spread_s = float(between_s.mean()), float(between_s.std())
        spread_s = max(spread_s, 1e-12 * self.deadline_s)  # then a round in time is a sure thing
        usual = self.deadline_s / round_s
        most = int(usual + 10.0 * (1.0 + spread_s / round_s) * np.sqrt(usual + 1.0))
        rounds = np.arange(1, most + 1)
        left_s = self.deadline_s * _IN_TIME - rounds * round_s
        at_least = np.concatenate([[1.0], normal_cdf(left_s / (spread_s * np.sqrt(rounds))), [0.0]])
        short = gaussian_outage(
            self.committed.mean(),
            self.committed.var(),
            np.arange(most + 1).reshape(-1, *[1] * asked.ndim),
            asked,
        )
        return np.asarray(np.tensordot(-np.diff(at_least), short, axes=1))


def inference_outage(trace: Trace, outage: Outage) -> InferenceOutage:
    """Every device's, against ``outage.tokens`` in ``outage.deadline_s``."""
    rows = []
    for windows in device_windows(trace, outage.deadline_s):
        share, stderr = windows.simulated(outage.tokens)
        rows.append((share, stderr, windows.gaussian(outage.tokens), windows.num_apart))
    simulated, stderr, gaussian, num_windows = np.array(rows, dtype=np.float64).T
    return InferenceOutage(simulated, stderr, gaussian, num_windows.astype(np.int64))


def device_windows(trace: Trace, deadline_s: float) -> Iterator[Windows]:
    """One for each device, in the order of ``trace.names``."""
    order = np.argsort(trace.device, kind="stable")  # of one device they stay in order of time
    ends = np.cumsum(np.bincount(trace.device, minlength=trace.num_devices))
    for rows in np.split(order, ends[:-1]):
        yield Windows(trace.at_s[rows], trace.num_committed[rows], deadline_s)


def draw_outage(trace: Trace, outage: Outage, title: str, file: str) -> None:
    """P(fewer than n tokens by the deadline) over n, counted (dots) and Gaussian (lines).

    Of the devices with the fewest, the median and the most tokens in a window.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - optional

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    devices = list(device_windows(trace, outage.deadline_s))
    seen = [at for at, windows in enumerate(devices) if windows.num_apart]
    ranked = sorted(seen, key=lambda at: float(devices[at].tokens.mean()))
    least = 1.0
    shown = dict.fromkeys(ranked[i] for i in (0, len(ranked) // 2, -1)) if ranked else {}
    for color, at in enumerate(shown):
        windows = devices[at]
        tokens = np.arange(windows.tokens.min(), windows.tokens.max() + 2)
        share, stderr = windows.simulated(tokens)
        axes.errorbar(tokens, share, stderr, fmt=".", color=f"C{color}", label=trace.names[at])
        axes.plot(tokens, windows.gaussian(tokens), color=f"C{color}")
        least = min(least, 0.5 / len(windows.tokens))
    axes.axhline(outage.max_probability, color="grey", linestyle=":")
    axes.axvline(outage.tokens, color="grey", linestyle=":", label="promised")
    axes.set(
        xlabel="n, tokens",
        ylabel=f"P(fewer than n in {outage.deadline_s:g} s)",
        title=title,
        yscale="log",
        ylim=(least, 1.5),
    )
    axes.grid(alpha=0.3)
    axes.legend(title="dots: simulated, lines: Gaussian")
    figure.savefig(file, dpi=150)


def _share_below(values: Lengths, limits: npt.ArrayLike) -> Floats:
    if len(values) == 0:
        return np.full(np.shape(limits), np.nan)
    return np.asarray(np.searchsorted(np.sort(values), limits, side="left") / len(values))
