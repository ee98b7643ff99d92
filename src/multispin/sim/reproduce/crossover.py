"""Where a server does better alone: batched generation, and speculation with both models on it.

Cooperation moves drafting to the devices and pays with uploads, a round trip and a barrier. Over
the server's speed, the round trip, the number of devices and the payload it is compared with the
server that generates for all devices in one batch, and with the server that also drafts for all of
them in one batch (``alone.colocated_problem``), each planned as well as it can be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from multispin.control import Problem, solve
from multispin.sim.reproduce.alone import colocated_problem
from multispin.sim.reproduce.paper import PAIRS, Draw, Pair, Setting, draw_all, stated
from multispin.sim.reproduce.result import Claim, Curve, Figure, Panel, Reproduction, lead
from multispin.sim.reproduce.sweep import Points, Rule, Tell, by_policy, planned, simulated
from multispin.wire.payload import payload

IDS = "cooperation, ids"
PROBABILITIES = "cooperation, 1024 probabilities"
ANY = "cooperation, payload of the axis"
ALONE = "server-only"
COLOCATED = "server drafts too"

SPEEDS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
ROUND_TRIPS_MS = (0.0, 50.0, 100.0, 200.0, 400.0, 800.0, 1200.0, 1600.0)
DEVICES = (1, 2, 4, 8, 16, 32, 64, 96)
BITS = (1e1, 1e2, 1e3, 1e4, 3e4, 1e5, 3e5, 1e6, 3e6)
NUM_ROUNDS = 50  # simulated of each draw
ID_BITS = payload("coupled", 248_320)

Draws = Sequence[Draw]


def crossover(draws: int, seed: int, tell: Tell) -> Reproduction:
    figures = []
    for name, pair in zip(("llama", "qwen"), PAIRS, strict=True):
        tell(pair.title)
        panels = tuple(_panels(pair, draw_all(pair, draws, seed)))
        figures.append(Figure(name, panels, pair.title))
    parameters = {
        **stated(_setting(PAIRS[0])),
        "ids": f"{ID_BITS.bits_per_token} bit a token, {ID_BITS.bits_per_draft} a draft",
        "cooperation": "every device drafts",
        "drafter on the server": "its share of the parameters in the target's time",
        "simulated": f"{NUM_ROUNDS} rounds a draw",
    }
    claims = tuple(claim for figure in figures for claim in _claims(figure))
    return Reproduction("crossover", seed, draws, parameters, tuple(figures), claims)


def _setting(pair: Pair) -> Setting:
    """Ids on the wire; every device has to draft."""
    return Setting(pair, min_draft_length=1, **ID_BITS._asdict())


def _panels(pair: Pair, draws: Draws) -> Iterator[Panel]:
    base = _setting(pair)
    speeds = [(x, replace(base, server_speed=x)) for x in SPEEDS]
    trips = [(x, replace(base, round_trip_s=x / 1e3)) for x in ROUND_TRIPS_MS]
    devices = [(float(x), replace(base, num_devices=x)) for x in DEVICES]
    payloads = [(x, replace(base, bits_per_token=x)) for x in BITS]
    both = _cooperation(pair, speeds, draws)
    yield Panel("server speed", "speed, times the paper's", both, is_log=True, is_log_y=True)
    yield Panel("round trip", "round trip, ms", _cooperation(pair, trips, draws))
    yield Panel("devices", "devices", _cooperation(pair, devices, draws))
    any_payload = _curves(pair, payloads, draws, ANY)
    yield Panel("payload", "payload, bit a drafted token", any_payload, is_log=True)


def _cooperation(pair: Pair, points: Points, draws: Draws) -> tuple[Curve, ...]:
    """With ids, and with the paper's payload."""
    probabilities = [
        (x, replace(setting, bits_per_token=pair.bits_per_token, bits_per_draft=0.0))
        for x, setting in points
    ]
    papers = planned(probabilities, draws, {PROBABILITIES: by_policy("heterogeneous")})
    return (*_curves(pair, points, draws, IDS), *papers)


def _curves(pair: Pair, points: Points, draws: Draws, label: str) -> tuple[Curve, ...]:
    return (
        *planned(points, draws, {label: by_policy("heterogeneous"), **_server(pair)}),
        *simulated(points[::2], draws, {label: "heterogeneous"}, NUM_ROUNDS),
    )


def _server(pair: Pair) -> dict[str, Rule]:
    """What the server does without the devices."""

    def alone(problem: Problem) -> float:
        return problem.num_devices / problem.base_round_s

    def colocated(problem: Problem) -> float:
        own = colocated_problem(problem, pair.drafter_share)
        return solve(replace(own, min_draft_length=0)).goodput_tokens_per_s

    return {ALONE: alone, COLOCATED: colocated}


def _claims(figure: Figure) -> Iterator[Claim]:
    """Where each kind of cooperation is ahead of what the server does without."""
    for panel in figure.panels:
        labels = {curve.label for curve in panel.curves}
        for label in (IDS, PROBABILITIES, ANY):
            if label in labels:
                ours = panel.curve(label)
                found = [
                    f"against {of}: {lead(ours, panel.curve(of))}" for of in (ALONE, COLOCATED)
                ]
                yield Claim(f"{figure.title}: {label}, over {panel.x_label}", "; ".join(found))
