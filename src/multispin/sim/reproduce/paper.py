"""The cells of arXiv 2606.04581, drawn.

Printed there: the verification fits, the payload, acceptance by task (mean and deviation over
prompts), gains U(0.2, 0.5) under Rayleigh fading, device speeds within 15 % of a mean, K and B.
Not printed, hence ours (docs/reproduce.md has the figures behind each choice):

- 40 ms a drafted token and 17 dB mean SNR: with these two the eight figures that the paper reports
  come out best;
- acceptance of a prompt: a normal law of the printed mean and deviation, clipped to [0.01, 0.99].
  Where prompts come and go in a simulation, Beta with the mean and deviation that are left of it;
- each device has one task, drawn from the four.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from multispin.cell import Cell, parse_cell
from multispin.control.outage import normal_cdf
from multispin.control.problem import Floats
from multispin.radio.units import db_to_linear, spectral_efficiency

DRAFT_S = 0.040
MEAN_SNR_DB = 17.0
GAIN = (0.2, 0.5)
SPREAD = 0.15  # of device speed
ACCEPTANCE = (0.01, 0.99)  # where the normal law is clipped
MAX_DEVICES = 96
ANSWER_TOKENS = 128


@dataclass(frozen=True)
class Pair:
    """A drafter and a target, as the paper measured them."""

    title: str
    verify_fixed_s: float
    verify_per_device_s: float
    bits_per_token: float
    tasks: tuple[tuple[float, float], ...]  # acceptance: mean and deviation over prompts
    drafter_share: float  # parameters of the drafter over those of the target


LLAMA = Pair(
    "TinyLlama 1.1B, Llama 2 7B",
    0.02268,
    0.01272,
    31744.0,
    ((0.858, 0.247), (0.739, 0.313), (0.739, 0.313), (0.713, 0.333)),
    1.1 / 6.7,
)
QWEN = Pair(
    "Qwen3.5 0.8B, Qwen3.5 27B",
    0.07507,
    0.01978,
    34816.0,
    ((0.810, 0.341), (0.934, 0.209), (0.932, 0.223), (0.965, 0.154)),
    0.8 / 27,
)
PAIRS = (LLAMA, QWEN)


@dataclass(frozen=True, eq=False)
class Draw:
    """MAX_DEVICES devices of a pair: speed, channel, task and prompt; a cell takes the first K."""

    draft_s_per_token: Floats
    spectral_efficiency: Floats
    task_mean: Floats  # acceptance of the device's task, over prompts
    task_std: Floats
    acceptance: Floats  # of the prompt at hand
    seed: int  # for what is simulated of it


def draw_devices(pair: Pair, rng: np.random.Generator) -> Draw:
    printed = np.array(pair.tasks)[rng.integers(len(pair.tasks), size=MAX_DEVICES)]
    mean, std = clipped_normal(*printed.T)
    gain = rng.uniform(*GAIN, MAX_DEVICES) / np.mean(GAIN) * rng.exponential(1.0, MAX_DEVICES)
    prompts = rng.normal(*printed.T)
    return Draw(
        draft_s_per_token=DRAFT_S * rng.uniform(1 - SPREAD, 1 + SPREAD, MAX_DEVICES),
        spectral_efficiency=spectral_efficiency(db_to_linear(MEAN_SNR_DB) * gain),
        task_mean=mean,
        task_std=std,
        acceptance=np.clip(prompts, *ACCEPTANCE),
        seed=int(rng.integers(2**32)),
    )


def clipped_normal(mean: Floats, std: Floats) -> tuple[Floats, Floats]:
    """Mean and deviation of a normal law, clipped to ``ACCEPTANCE``."""
    ends = np.array(ACCEPTANCE)[:, None]
    standard = (ends - mean) / std
    below, density = normal_cdf(standard), np.exp(-(standard**2) / 2) / np.sqrt(2 * np.pi)
    inside = below[1] - below[0]
    at_ends = np.stack([below[0], 1 - below[1]])
    clipped = (ends * at_ends).sum(axis=0) + mean * inside - std * np.diff(density, axis=0)[0]
    square = (ends**2 * at_ends).sum(axis=0) + (mean**2 + std**2) * inside
    square -= std * np.diff((mean + ends) * density, axis=0)[0]
    return clipped, np.sqrt(square - clipped**2)


def draw_all(pair: Pair, draws: int, seed: int) -> list[Draw]:
    """The same draws for every figure."""
    return [draw_devices(pair, np.random.default_rng([seed, index])) for index in range(draws)]


def stated(setting: Setting) -> dict[str, str]:
    """What a cell is made of, in words and units."""
    return {
        "devices": str(setting.num_devices),
        "bandwidth": f"{setting.bandwidth_hz / 1e6:g} MHz",
        "draft lengths": f"{setting.min_draft_length} to {setting.max_draft_length}",
        "drafting": f"{DRAFT_S * 1e3:g} ms a token ± {SPREAD:.0%}",
        "SNR": f"{MEAN_SNR_DB:g} dB mean, gains U{GAIN} with Rayleigh fading",
        "round trip": f"{setting.round_trip_s * 1e3:g} ms",
        "acceptance": "normal over the prompts of a task, clipped; one task a device",
    }


@dataclass(frozen=True)
class Setting:
    """A cell of the paper, but for what is said here."""

    pair: Pair
    num_devices: int = 20
    bandwidth_hz: float = 10e6
    server_speed: float = 1.0  # times that of the paper's A100
    bits_per_token: float | None = None  # None: the pair's
    bits_per_draft: float = 0.0
    round_trip_s: float = 0.0
    min_draft_length: int = 0
    max_draft_length: int = 25

    @property
    def verify_s(self) -> float:
        """One verification pass."""
        pair = self.pair
        pass_s = pair.verify_fixed_s + pair.verify_per_device_s * self.num_devices
        return pass_s / self.server_speed

    def cell(self, draw: Draw, *, knows_prompts: bool = True) -> Cell:
        """Acceptance is each prompt's own, or by task with Beta-distributed prompts."""
        return parse_cell(self._toml(draw, knows_prompts), source="the paper's cell")

    def _toml(self, draw: Draw, knows_prompts: bool) -> str:
        pair, bits = self.pair, self.bits_per_token
        lines = [
            "[cell]",
            f"bandwidth_hz = {self.bandwidth_hz!r}",
            "[server]",
            f"verify_fixed_s = {pair.verify_fixed_s / self.server_speed!r}",
            f"verify_per_device_s = {pair.verify_per_device_s / self.server_speed!r}",
            f"round_trip_s = {self.round_trip_s!r}",
            f"min_draft_length = {self.min_draft_length}",
            f"max_draft_length = {self.max_draft_length}",
        ]
        acceptance = draw.acceptance if knows_prompts else draw.task_mean
        for k in range(self.num_devices):
            lines += [
                "[[device]]",
                f'name = "{k}"',
                f"draft_s_per_token = {draw.draft_s_per_token[k]}",
                f"spectral_efficiency = {draw.spectral_efficiency[k]}",
                f"acceptance = {acceptance[k]}",
                f"bits_per_token = {pair.bits_per_token if bits is None else bits!r}",
                f"bits_per_draft = {self.bits_per_draft!r}",
                f"answer_tokens = {ANSWER_TOKENS}",
            ]
            if not knows_prompts:
                lines += ["[device.acceptance_model]", 'kind = "beta"', f"std = {draw.task_std[k]}"]
        return "\n".join(lines)
