import itertools

import numpy as np

from multispin.core.rows import TOLERANCE, choose_rows


def tokens(rows: tuple[int, ...] | list[int], drafts: list[np.ndarray]) -> float:
    return sum(1 + draft[: num - 1].sum() for num, draft in zip(rows, drafts, strict=True))


def best_by_brute_force(drafts: list[np.ndarray], pass_s: np.ndarray) -> float:
    """Highest tokens per second over every number of rows of every session, one at least."""
    return max(
        tokens(rows, drafts) / pass_s[sum(rows) - 1]
        for rows in itertools.product(*(range(1, len(draft) + 2) for draft in drafts))
        if sum(rows) <= len(pass_s)
    )


def random_drafts(rng: np.random.Generator, num_sessions: int) -> list[np.ndarray]:
    return [np.cumprod(rng.uniform(0.2, 0.99, rng.integers(0, 5))) for _ in range(num_sessions)]


def choose(drafts: list[np.ndarray], pass_s: np.ndarray) -> list[int]:
    num_drafted = np.array([len(draft) for draft in drafts])
    return choose_rows(np.concatenate(drafts), num_drafted, pass_s).tolist()


def test_no_other_choice_of_rows_commits_many_more_tokens_per_second() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        drafts = random_drafts(rng, int(rng.integers(1, 5)))
        pass_s = rng.uniform(0.05, 0.1) + np.cumsum(rng.exponential(0.02, rng.integers(4, 20)))
        pass_s[rng.integers(0, len(pass_s))] *= 1.3  # a step that ends
        rows = choose(drafts, pass_s)
        assert all(num <= len(draft) + 1 for num, draft in zip(rows, drafts, strict=True))
        assert sum(rows) <= len(pass_s)
        best = best_by_brute_force(drafts, pass_s)
        assert tokens(rows, drafts) / pass_s[sum(rows) - 1] >= best * (1 - TOLERANCE)


def test_where_rows_are_free_everything_is_verified() -> None:
    drafts = [np.array([0.5, 0.3]), np.array([]), np.array([0.9])]
    assert choose(drafts, np.full(9, 0.1)) == [3, 1, 2]


def test_where_rows_are_dear_no_draft_is_and_the_longest_waiting_come_first() -> None:
    drafts = [np.array([0.9]), np.array([0.9]), np.array([0.9])]
    assert choose(drafts, np.array([0.1, 0.2, 0.3, 0.7, 1.1, 1.5])) == [1, 1, 1]
    assert choose(drafts, np.array([0.1, 0.2])) == [1, 1, 0]  # no room for more


def test_rows_are_filled_up_to_the_end_of_a_step() -> None:
    """Three rows cost more than four: the fourth is taken although it is worth little."""
    pass_s = np.array([0.070, 0.109, 0.133, 0.125, 0.160, 0.182])
    drafts = [np.array([0.8, 0.1, 0.05, 0.04])]
    assert choose(drafts, pass_s) == [2]
    assert choose([np.array([0.9, 0.8, 0.05, 0.04])], pass_s) == [4]
