"""When does drafting pay? Draws docs/pictures/crossover.svg with the product's own simulator.

    python scripts/draw_crossover.py [--out FILE.svg] [--passes 240] [--most-devices 256]

Goodput of mode ``window`` over that of the server alone, for more and more devices and for three
acceptances, on two servers: one whose passes were measured (Qwen2.5-Coder 1.5B, Q4_K_M, two cores
with AVX-512; docs/measuring.md has the same machine) and one whose passes cost the same up to 148
rows, stated, as on a GPU. Everything is simulated: the running server's own code on a virtual
clock, the first third of the time, in which it learns, left out. The same seed gives the same
picture. Needs multispin[research].
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from multispin.cell import parse_cell
from multispin.sim.shell import simulate_core

SEED = 0
ACCEPTANCES = (0.5, 0.7, 0.9)
LEARNING = 1 / 3  # of the time
INK, PAPER = "#334155", "#ffffff"
COLOURS = ("#94a3b8", "#0891b2", "#16a34a")


class Server(NamedTuple):
    title: str
    rows: tuple[int, ...]
    seconds: tuple[float, ...]
    devices: tuple[int, ...]


SERVERS = (
    Server(
        "two processor cores, passes as measured",
        (1, 2, 3, 4, 6, 8, 12, 16, 32, 64),
        (0.070, 0.109, 0.133, 0.125, 0.182, 0.231, 0.280, 0.275, 0.466, 0.880),
        (1, 2, 4, 8, 16, 32),
    ),
    Server(
        "flat passes: 30 ms to 148 rows, then 0.2 ms a row",
        (1, 148, 1148),
        (0.030, 0.030, 0.230),
        (1, 4, 16, 64, 128, 256),
    ),
)

CELL = """
[cell]
bandwidth_hz = 1e9
[server]
verify_fixed_s = {seconds[0]}
round_trip_s = 0.020
max_draft_length = 16
curve = {{ rows = {rows}, seconds = {seconds} }}
[[device]]
name = "device"
count = {num_devices}
draft_s_per_token = 0.010
acceptance = {acceptance}
payload = "coupled"
vocabulary_size = 151665
spectral_efficiency = 2.0
"""


class Point(NamedTuple):
    server: str
    acceptance: float
    num_devices: int
    window_tokens_per_s: float
    alone_tokens_per_s: float

    @property
    def ratio(self) -> float:
        return self.window_tokens_per_s / self.alone_tokens_per_s


def points(
    server: Server, devices: Sequence[int], acceptances: Sequence[float], num_passes: int
) -> Iterator[Point]:
    for num_devices in devices:
        alone = goodput(server, num_devices, acceptances[0], "server-only", num_passes)
        for acceptance in acceptances:
            ours = goodput(server, num_devices, acceptance, None, num_passes)
            yield Point(server.title, acceptance, num_devices, ours, alone)


def goodput(
    server: Server, num_devices: int, acceptance: float, policy: str | None, num_passes: int
) -> float:
    """Simulated tokens/s of all devices together, after the server has learned."""
    text = CELL.format(
        rows=list(server.rows),
        seconds=list(server.seconds),
        num_devices=num_devices,
        acceptance=acceptance,
    )
    trace = simulate_core(parse_cell(text), "window", policy, num_passes, SEED)
    begin_s = LEARNING * trace.simulated_s
    tokens = trace.num_committed[trace.at_s > begin_s].sum()
    return float(tokens / (trace.simulated_s - begin_s))


def draw(found: Sequence[Point], file: Path, num_passes: int) -> None:
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(9.2, 3.9), layout="constrained", facecolor=PAPER)
    titles = list(dict.fromkeys(point.server for point in found))
    for column, title in enumerate(titles):
        axes = figure.add_subplot(1, len(titles), column + 1, facecolor=PAPER)
        for acceptance, colour in zip(ACCEPTANCES, COLOURS, strict=True):
            mine = [p for p in found if (p.server, p.acceptance) == (title, acceptance)]
            x, y = [p.num_devices for p in mine], [p.ratio for p in mine]
            label = f"{acceptance:.0%} accepted"
            axes.plot(x, y, color=colour, marker="o", linewidth=2, label=label)
        axes.axhline(1.0, color=INK, linewidth=1, linestyle="--")
        axes.annotate(
            "the server alone",
            (max(x), 1.0),
            (0, -12),
            color=INK,
            ha="right",
            textcoords="offset points",
            fontsize=9,
        )
        axes.set_xscale("log", base=2)
        axes.set_xticks(x, [str(tick) for tick in x])
        axes.set_ylim(0.8, 1.1 * max(p.ratio for p in found))
        axes.set_title(title, fontsize=10, color=INK)
        axes.set_xlabel("devices", color=INK)
        axes.tick_params(colors=INK, which="both")
        axes.grid(alpha=0.25, color=INK)
        for spine in axes.spines.values():
            spine.set_color(INK)
        if column == 0:
            axes.set_ylabel("goodput, times the server alone", color=INK)
            axes.legend(frameon=False, labelcolor=INK, fontsize=9, loc="upper right")
    figure.supxlabel(
        f"simulated, seed {SEED}, {num_passes} passes a point: window over server-only; 10 ms a "
        "drafted token, 20 ms round trip, an uplink that is not scarce",
        fontsize=8,
        color=INK,
    )
    with mpl.rc_context({"svg.hashsalt": "multispin", "svg.fonttype": "none"}):
        figure.savefig(file, metadata={"Date": None})
    file.write_text(adaptive(file.read_text("utf-8")), "utf-8")


def adaptive(svg: str) -> str:
    """The same picture in the colours that the reader's system has, light or dark."""
    style = (
        f"<style>svg {{ --ink: {INK}; --paper: {PAPER}; }} @media (prefers-color-scheme: dark) "
        "{ svg { --ink: #cbd5e1; --paper: #1e2129; } }</style>"
    )
    svg = svg.replace(INK, "var(--ink)").replace(PAPER, "var(--paper)")
    svg = re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE)
    return re.sub(r"(<svg [^>]*>)", rf"\1\n{style}", svg, count=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/crossover.svg"))
    parser.add_argument("--passes", type=int, default=240)
    parser.add_argument("--most-devices", type=int, default=256)
    arguments = parser.parse_args()
    found = []
    for server in SERVERS:
        devices = [n for n in server.devices if n <= arguments.most_devices]
        print(server.title)
        for point in points(server, devices, ACCEPTANCES, arguments.passes):
            found.append(point)
            print(
                f"  {point.num_devices:4} devices, {point.acceptance:.0%} accepted: "
                f"{point.window_tokens_per_s:7.1f} over {point.alone_tokens_per_s:7.1f} tokens/s "
                f"= {point.ratio:.2f}",
                flush=True,
            )
    draw(found, arguments.out, arguments.passes)


if __name__ == "__main__":
    main()
