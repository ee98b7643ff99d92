"""The paper's figures: goodput over draft length, verification time, bandwidth and devices.

For both pairs of models, with every baseline of the paper; beside them the server alone with all
devices in one batch, which the paper leaves out.

One more figure asks what is left when a prompt's acceptance is not known before it is written, as
the paper assumes it is: plans know the mean of each device's task, and answers are of one length,
so that prompts which are hard to draft for take more of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import numpy as np
from scipy.special import roots_jacobi  # type: ignore[import-untyped]

from multispin.control import expected_tokens, solve
from multispin.sim.reproduce.alone import centralised, one_device
from multispin.sim.reproduce.paper import (
    PAIRS,
    Draw,
    Pair,
    Setting,
    draw_all,
    stated,
)
from multispin.sim.reproduce.result import Claim, Figure, Panel, Reproduction
from multispin.sim.reproduce.sweep import (
    Points,
    Rule,
    Tell,
    averaged,
    by_policy,
    planned,
    simulated,
)

OURS = "heterogeneous (ours)"
LENGTH_ONLY = "length-only (Uni-BW)"
HOMOGENEOUS = "homogeneous (Homo)"
FIXED = "fixed (Fixed)"
ALONE = "server-only"
OPTIMISED, EQUAL = "one length, best bandwidth", "one length, equal bandwidth"
KNOWN = ("heterogeneous, prompts known", "fixed, prompts known")
UNKNOWN = {"heterogeneous": "heterogeneous, prompts unknown", "fixed": "fixed, prompts unknown"}

DRAFT_LENGTHS = (1, 2, 4, 6, 8, 12, 16, 20, 25)
VERIFY_SCALES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
MEGAHERTZ = (5.0, 7.5, 10.0, 12.5, 15.0, 17.5, 20.0)
DEVICES = (10, 12, 14, 16, 18, 20, 22, 24)
NUM_ROUNDS = 100  # simulated of each draw
NUM_LONG_ROUNDS = 300  # where prompts come and go
NODES = 48  # of the quadrature over prompts
REPORTED = ("145", "153")  # tokens/s, for each pair
REPORTED_GAINS = ("+21 % to +67 %", "+29 % to above +80 %")

Draws = Sequence[Draw]


def multi_spin(draws: int, seed: int, tell: Tell) -> Reproduction:
    panels: dict[str, Callable[[Pair, Draws], Panel]] = {
        "draft-length": _over_draft_length,
        "verification": _over_verification,
        "bandwidth": _over_bandwidth,
        "devices": _over_devices,
        "unknown-prompts": _unknown_prompts,
    }
    drawn = {pair: draw_all(pair, draws, seed) for pair in PAIRS}
    figures = []
    for name, panel in panels.items():
        tell(name)
        figures.append(Figure(name, tuple(panel(pair, drawn[pair]) for pair in PAIRS)))
    parameters = {
        **stated(Setting(PAIRS[0])),
        "payload": " and ".join(f"{pair.bits_per_token:,.0f}" for pair in PAIRS) + " bit a token",
        "simulated": f"{NUM_ROUNDS} rounds a draw, {NUM_LONG_ROUNDS} where prompts are unknown",
    }
    claims: list[Claim] = []
    for index, pair in enumerate(PAIRS):
        by_name = {figure.name: figure.panels[index] for figure in figures}
        claims += _claims(by_name, REPORTED[index], REPORTED_GAINS[index])
        claims.append(_all_draft(pair, drawn[pair], by_name["bandwidth"]))
    return Reproduction("multi-spin", seed, draws, parameters, tuple(figures), tuple(claims))


# --- the paper's figures -----------------------------------------------------------------------


def _over_draft_length(pair: Pair, draws: Draws) -> Panel:
    """One length for all, and beside it what lengths of their own give."""
    points = [
        (float(length), Setting(pair, min_draft_length=length, max_draft_length=length))
        for length in DRAFT_LENGTHS
    ]
    ends = [(x, Setting(pair)) for x, _ in (points[0], points[-1])]
    curves = [
        *planned(ends, draws, {OURS: by_policy("heterogeneous")}),
        *planned(points, draws, {OPTIMISED: by_policy("homogeneous"), EQUAL: by_policy("fixed")}),
        *planned(ends, draws, {ALONE: by_policy("server-only")}),
        *simulated(points[::2], draws, {OPTIMISED: "homogeneous", EQUAL: "fixed"}, NUM_ROUNDS),
    ]
    return Panel(pair.title, "draft length, tokens", tuple(curves))


def _over_verification(pair: Pair, draws: Draws) -> Panel:
    settings = [Setting(pair, server_speed=1 / scale) for scale in VERIFY_SCALES]
    points = [(round(1e3 * setting.verify_s, 1), setting) for setting in settings]
    return _compared(pair, draws, "verification of 20 devices, ms", points)


def _over_bandwidth(pair: Pair, draws: Draws) -> Panel:
    return _compared(pair, draws, "bandwidth, MHz", _by_bandwidth(pair))


def _over_devices(pair: Pair, draws: Draws) -> Panel:
    points = [(float(num), Setting(pair, num_devices=num)) for num in DEVICES]
    return _compared(pair, draws, "devices", points)


def _by_bandwidth(pair: Pair) -> Points:
    return [(mhz, Setting(pair, bandwidth_hz=1e6 * mhz)) for mhz in MEGAHERTZ]


def _compared(pair: Pair, draws: Draws, x_label: str, points: Points) -> Panel:
    """Every rule planned; ours and Fixed also simulated, at every second point."""
    curves = [
        *planned(points, draws, _rules(pair)),
        *simulated(points[::2], draws, {OURS: "heterogeneous", FIXED: "fixed"}, NUM_ROUNDS),
    ]
    return Panel(pair.title, x_label, tuple(curves))


def _rules(pair: Pair) -> dict[str, Rule]:
    return {
        OURS: by_policy("heterogeneous"),
        LENGTH_ONLY: by_policy("length-only"),
        HOMOGENEOUS: by_policy("homogeneous"),
        "bandwidth-only": by_policy("bandwidth-only"),
        FIXED: by_policy("fixed"),
        ALONE: by_policy("server-only"),
        "one device, whole band (P2P)": one_device,
        "server drafts, one prompt (Cen)": partial(centralised, drafter_share=pair.drafter_share),
    }


# --- prompts that nobody knows before ----------------------------------------------------------


def _unknown_prompts(pair: Pair, draws: Draws) -> Panel:
    """Plans that know each prompt, and plans that know the mean of each task."""
    points = _by_bandwidth(pair)
    by_label = {label: policy for policy, label in UNKNOWN.items()}
    known = dict(zip(KNOWN, map(by_policy, UNKNOWN), strict=True))
    curves = [
        *planned(points, draws, known),
        *averaged("planned", points, draws, list(by_label), goodputs_by_task),
        *simulated(points[::3], draws, by_label, NUM_LONG_ROUNDS, knows_prompts=False),
        *planned(points, draws, {ALONE: by_policy("server-only")}),
    ]
    return Panel(pair.title, "bandwidth, MHz", tuple(curves))


def goodputs_by_task(setting: Setting, draw: Draw) -> list[float]:
    """Long-run goodput of each policy that is told the mean acceptance of each task."""
    problem = setting.cell(draw, knows_prompts=False).problem
    goodputs = []
    for policy in UNKNOWN:
        plan = solve(problem, policy)
        num = setting.num_devices
        tokens = map(
            tokens_per_round,
            draw.task_mean[:num].tolist(),
            draw.task_std[:num].tolist(),
            plan.lengths.tolist(),
        )
        goodputs.append(sum(tokens) / plan.round_s)
    return goodputs


@lru_cache(maxsize=1000)
def tokens_per_round(mean: float, std: float, length: int) -> float:
    """1/E[1/E[N]] over prompts with Beta-distributed acceptance, by Gauss-Jacobi quadrature.

    All answers are as long, so that one takes rounds in proportion to 1/E[N(alpha)].
    """
    concentration = mean * (1 - mean) / std**2 - 1  # a + b, and a : b = mean : 1 - mean
    a, b = mean * concentration, (1 - mean) * concentration
    nodes, weights = roots_jacobi(NODES, b - 1, a - 1)
    rounds = 1 / expected_tokens((1 + nodes) / 2, np.full(NODES, length))
    return float(weights.sum() / (weights * rounds).sum())


# --- what the paper claims ---------------------------------------------------------------------


def _claims(panels: dict[str, Panel], reported: str, reported_gains: str) -> list[Claim]:
    """Of one pair of models; gains are ratios of means over the draws."""
    bandwidth, devices, unknown = (
        panels[name] for name in ("bandwidth", "devices", "unknown-prompts")
    )
    usual, scarce = 10.0, MEGAHERTZ[0]
    ours, fixed = devices.curve(OURS), devices.curve(FIXED)
    mean, whole = (unknown.curve(label) for label in UNKNOWN.values())
    compared = [bandwidth, devices, panels["verification"]]
    goodput, alone = bandwidth.curve(OURS), bandwidth.curve(ALONE)
    return [
        Claim(
            f"{bandwidth.title}: 20 devices, 10 MHz", goodput.text(usual), f"{reported} tokens/s"
        ),
        Claim("over Fixed at 5 MHz", goodput.gain(bandwidth.curve(FIXED), scarce), "up to +88 %"),
        Claim(
            f"over Fixed, K = {DEVICES[0]} to {DEVICES[-1]}",
            f"{ours.gain(fixed, DEVICES[0])} to {ours.gain(fixed, DEVICES[-1])}",
            reported_gains,
        ),
        Claim("Uni-BW above Homo", _above(LENGTH_ONLY, HOMOGENEOUS, compared), "throughout"),
        Claim("over the server alone, 10 MHz", goodput.gain(alone, usual)),
        Claim("prompts unknown, 10 MHz", mean.text(usual)),
        Claim("prompts unknown: over Fixed at 5 MHz", mean.gain(whole, scarce)),
    ]


def _all_draft(pair: Pair, draws: Draws, bandwidth: Panel) -> Claim:
    """The paper has no length 0."""
    points = [(10.0, Setting(pair, min_draft_length=1))]
    [all_draft] = planned(points, draws, {OURS: by_policy("heterogeneous")})
    lost = max(1 - all_draft.at(10.0) / bandwidth.curve(OURS).at(10.0), 0.0)
    return Claim("lost if every device must draft", f"{100 * lost:.1f} %", "all draft")


def _above(first: str, second: str, panels: Sequence[Panel]) -> str:
    ratios = np.concatenate(
        [panel.curve(first).mean / panel.curve(second).mean for panel in panels]
    )
    least, most = 100 * (ratios.min() - 1), 100 * (ratios.max() - 1)
    return f"at {(ratios > 1).sum()} of {len(ratios)} points, {least:+.1f} to {most:+.1f} %"
