"""What needs no cooperation, or only one device's: rules that control/ has no policy for.

With drafter and target both on the server, one pass of the drafter over n sequences takes the share
``drafter_share`` of a pass of the target over as many: both are bound by reading weights, so this
is the least that it can take.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from multispin.control import Problem, expected_tokens
from multispin.control.problem import Floats, Lengths


def colocated_problem(problem: Problem, drafter_share: float) -> Problem:
    """Batched speculation on the server, as a cell without an uplink.

    A round: the drafter passes max L_k times, over the sequences that still draft, then the target
    verifies. With a drafter's pass of f + p n seconds for n sequences,

        T = f max L_k + p sum L_k + T_0 + T_K K + t sum(L_k + 1)

    which is a cell whose devices draft a token in f, without bits and round trip, at a
    per-token cost of t + p, less p a device for the (L_k + 1).
    """
    per_row = drafter_share * (problem.verify_per_device_s + problem.verify_per_token_s)
    return replace(
        problem,
        draft_s_per_token=np.full(problem.num_devices, drafter_share * problem.verify_fixed_s),
        bits_per_token=np.zeros(problem.num_devices),
        bits_per_draft=np.zeros(problem.num_devices),
        round_trip_s=0.0,
        verify_per_token_s=problem.verify_per_token_s + per_row,
        verify_per_device_s=problem.verify_per_device_s - per_row,
    )


def centralised(problem: Problem, drafter_share: float) -> float:
    """The paper's Cen: the server drafts and verifies for one prompt at a time, in equal turns."""
    lengths = _lengths(problem)
    before_s = lengths * (drafter_share * _row_s(problem))
    return _in_turns(problem, lengths, np.asarray(before_s))


def one_device(problem: Problem) -> float:
    """The paper's P2P: one device has band and server to itself, in equal turns."""
    lengths = _lengths(problem)
    draft_s = lengths * problem.draft_s_per_token
    upload_s = problem.draft_bits(lengths) / problem.alone_rate
    before_s = draft_s + upload_s + problem.round_trip_s * (lengths > 0)
    return _in_turns(problem, lengths, np.asarray(before_s))


def _lengths(problem: Problem) -> Lengths:
    """Every draft length [L, 1]."""
    return np.arange(problem.min_draft_length, problem.max_draft_length + 1)[:, None]


def _in_turns(problem: Problem, lengths: Lengths, before_s: Floats) -> float:
    """Mean goodput of a prompt alone at its best length; ``before_s`` [L, K or 1] to verify."""
    round_s = before_s + _row_s(problem) + problem.verify_per_token_s * lengths
    goodput = expected_tokens(problem.acceptance, lengths) / round_s
    return float(goodput.max(axis=0).mean())


def _row_s(problem: Problem) -> float:
    """The target over one sequence of one row."""
    return problem.verify_fixed_s + problem.verify_per_device_s + problem.verify_per_token_s
