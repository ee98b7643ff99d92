"""A policy of one's own: everybody drafts for the same time, and nobody longer than it pays.

multispin plan examples/factory.toml --policy examples.own_policy:SameTime --compare
multispin simulate examples/factory.toml --policy examples.own_policy:SameTime
multispin serve --target ngram --policy examples.own_policy:SameTime
"""

import numpy as np

from multispin.control import Plan, Problem, bandwidth_for


class SameTime:
    """L_k: the tokens that device k drafts in a quarter of a pass, while a_k^L_k >= 0.3."""

    def plan(self, problem: Problem) -> Plan:
        in_time = problem.base_round_s / 4 / problem.draft_s_per_token
        likely = np.log(0.3) / np.log(np.clip(problem.acceptance, 1e-9, 1 - 1e-9))
        lengths = np.floor(np.minimum(in_time, likely)).astype(np.int64)
        lengths = np.clip(lengths, problem.min_draft_length, problem.max_draft_length)
        return bandwidth_for(problem, lengths)
