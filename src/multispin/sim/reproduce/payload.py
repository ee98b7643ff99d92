"""The same cell with what others send for a drafted token, and with ids alone.

The acceptance rules differ in what they send, and hardly in what they accept: acceptance is the
same at every payload here. Every draft also pays the headers of its frame.
"""

from __future__ import annotations

from collections.abc import Sequence

from multispin.sim.reproduce.paper import PAIRS, Draw, Pair, Setting, draw_all, stated
from multispin.sim.reproduce.result import Claim, Figure, Panel, Reproduction
from multispin.sim.reproduce.sweep import Points, Tell, by_policy, planned, simulated
from multispin.wire.frames import TRANSPORT_BITS

PAYLOADS = {
    "18 bit: an id of 248,320": 18.0,
    "31 bit: an id of 32,000, a probability": 31.0,
    "31,744 bit: 1024 probabilities, 32,000 ids": 31744.0,
    "34,816 bit: 1024 probabilities, 248,320 ids": 34816.0,
}
LEAST, MOST = next(iter(PAYLOADS)), list(PAYLOADS)[2]
MEGAHERTZ = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 20.0)
ALONE = "server-only"
NUM_ROUNDS = 100  # simulated of each draw


def payload(draws: int, seed: int, tell: Tell) -> Reproduction:
    panels = []
    for pair in PAIRS:
        tell(f"payloads, {pair.title}")
        panels.append(_panel(pair, draw_all(pair, draws, seed)))
    parameters = {
        **stated(Setting(PAIRS[0])),
        "headers": f"{TRANSPORT_BITS} bit a draft",
        "simulated": f"{NUM_ROUNDS} rounds a draw",
    }
    claims = tuple(claim for panel in panels for claim in _claims(panel))
    figure = Figure("bandwidth", tuple(panels))
    return Reproduction("payload", seed, draws, parameters, (figure,), claims)


def _panel(pair: Pair, draws: Sequence[Draw]) -> Panel:
    ours = {ALONE: by_policy("server-only")}
    curves = planned(_points(pair, 0.0), draws, ours)
    for label, bits in PAYLOADS.items():
        points = _points(pair, bits)
        curves += planned(points, draws, {label: by_policy("heterogeneous")})
        curves += simulated(points[::3], draws, {label: "heterogeneous"}, NUM_ROUNDS)
    return Panel(pair.title, "bandwidth, MHz", tuple(curves), is_log=True)


def _points(pair: Pair, bits: float) -> Points:
    return [
        (
            mhz,
            Setting(
                pair,
                bandwidth_hz=1e6 * mhz,
                bits_per_token=bits,
                bits_per_draft=float(TRANSPORT_BITS),
            ),
        )
        for mhz in MEGAHERTZ
    ]


def _claims(panel: Panel) -> list[Claim]:
    least, most, alone = (panel.curve(label) for label in (LEAST, MOST, ALONE))
    return [
        Claim(
            f"{panel.title}: an id instead of 1024 probabilities at {mhz:g} MHz",
            f"{most.at(mhz):.0f} becomes {least.at(mhz):.0f} tokens/s (server alone "
            f"{alone.at(mhz):.0f})",
        )
        for mhz in (0.1, 1.0, 10.0)
    ]
