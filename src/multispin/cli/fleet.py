"""`multispin simulate CLUSTER.toml`: replicas, and a fleet of devices at the level of texts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multispin.cell.cluster import load_cluster
from multispin.sim.fleet import DRAIN, FAILURE, MOVE, NEW, STEP_S, Site, simulate_fleet
from multispin.sim.statistics import quantiles

if TYPE_CHECKING:
    from multispin.sim.fleet import FleetTrace
    from multispin.sim.trace import Progress


def simulate_cluster(
    path: Path, policy: str, seed: int, progress: Progress, *, as_json: bool
) -> None:
    cluster = load_cluster(path)
    started = time.perf_counter()
    trace = simulate_fleet(cluster, policy, seed, progress)
    fleet = cluster.fleet
    result = {
        "cluster": str(path),
        "policy": policy,
        "seed": seed,
        "devices": fleet.devices,
        "radio_cells": fleet.radio_cells,
        "simulated_s": len(trace.tokens) * STEP_S,
        "wall_s": time.perf_counter() - started,
        "goodput_tokens_per_s": float(trace.tokens.sum() / (len(trace.tokens) * STEP_S)),
        "targets": [_target(trace, index, site) for index, site in enumerate(trace.sites)],
    }
    if as_json:
        print(json.dumps(result, allow_nan=False))
    else:
        _show(result)


def _target(trace: FleetTrace, index: int, site: Site) -> dict[str, Any]:
    sessions, replicas = trace.sessions[:, index], trace.replicas[:, index]
    tokens = trace.tokens[:, index]
    return {
        "name": site.section.name,
        "goodput_tokens_per_s": float(tokens.mean() / STEP_S),
        "tokens": float(tokens.sum()),
        "texts": site.num_ended,
        "lost_texts": site.num_lost,
        "sessions_mean": float(sessions.mean()),
        "sessions_peak": int(sessions.max()),
        "replicas_mean": float(replicas.mean()),
        "replicas_peak": int(replicas.max()),
        "tokens_per_s_of_a_text": float(tokens.sum() / max(1, sessions.sum()) / STEP_S),
        "opening_s": _pauses(site.paused(NEW)),
        "hand_over_s": {
            "failure": _pauses(site.paused(FAILURE)),
            "drain": _pauses(site.paused(DRAIN)),
            "move": _pauses(site.paused(MOVE)),
        },
    }


def _pauses(seconds: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, Any]:
    return {"num": len(seconds), **quantiles(seconds)._asdict()}


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False, emoji=False)
    for target in result["targets"]:
        table = Table(title=f"simulated, {target['name']}: seconds without a token")
        for heading in ("", "times", "p50", "p95", "p99"):
            table.add_column(heading, justify="right" if heading else "left")
        for cause, pauses in (("opening", target["opening_s"]), *target["hand_over_s"].items()):
            shown = ["-" if p is None else f"{p:.3f}" for p in list(pauses.values())[1:]]
            table.add_row(cause, f"{pauses['num']:,}", *shown)
        console.print(table)
        console.print(
            f"goodput {target['goodput_tokens_per_s']:,.0f} tokens/s, "
            f"{target['tokens_per_s_of_a_text']:.1f} for a text; {target['texts']:,} texts, "
            f"{target['lost_texts']:,} lost; sessions {target['sessions_mean']:,.0f}, at most "
            f"{target['sessions_peak']:,}; replicas {target['replicas_mean']:.0f}, at most "
            f"{target['replicas_peak']:,}",
            soft_wrap=True,
        )
    console.print(
        f"simulated: {result['cluster']}, policy {result['policy']}, seed {result['seed']}; "
        f"{result['devices']:,} devices in {result['radio_cells']:,} radio cells, "
        f"{result['simulated_s']:,.0f} simulated seconds in {result['wall_s']:.0f} s",
        soft_wrap=True,
    )
