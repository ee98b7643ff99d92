"""Naive definitions that the product is compared with: sort everything, sum everything."""

from __future__ import annotations

import math

import numpy as np

from multispin.types import SamplingParams


def naive_adjusted(row, params: SamplingParams, tokens, num_prompt: int) -> np.ndarray:
    out = np.array(row, dtype=np.float32)
    for token, bias in params.logit_bias.items():
        out[token] = out[token] + np.float32(bias)
    r = params.repetition_penalty
    for token in {int(t) for t in tokens}:
        if r != 1.0:
            value = out[token]
            out[token] = value / np.float32(r) if value > 0 else value * np.float32(r)
    output = [int(t) for t in tokens[num_prompt:]]
    for token in set(output):
        out[token] -= np.float32(
            params.presence_penalty + params.frequency_penalty * output.count(token)
        )
    return out


def naive_distribution(row, params: SamplingParams, tokens=(), num_prompt: int = 0) -> np.ndarray:
    """Probability of every token, by a full sort.  [vocab]"""
    row = naive_adjusted(row, params, tokens, num_prompt)
    order = np.lexsort((np.arange(row.size), -row.astype(np.float64)))
    logits = row[order].astype(np.float64)
    with np.errstate(over="ignore"):
        weights = np.exp((logits - logits[0]) / params.temperature)
    keep = int(np.count_nonzero(weights))
    order, weights = order[:keep], weights[:keep]
    if params.top_k:
        order, weights = order[: params.top_k], weights[: params.top_k]
    if params.top_p < 1.0:
        cumulated = np.cumsum(weights)
        target = params.top_p * math.fsum(weights)
        reached = np.flatnonzero(cumulated >= target)
        num = int(reached[0]) + 1 if reached.size else weights.size
        order, weights = order[:num], weights[:num]
    if params.min_p:
        num = int(np.count_nonzero(weights >= params.min_p * weights[0]))
        order, weights = order[:num], weights[:num]
    p = np.zeros(row.size)
    p[order] = weights / math.fsum(weights)
    return p
