"""What every pool of sequences must know and refuse, whatever model is behind it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from multispin.errors import BadInput
from multispin.lm.base import Rows


class Pool:
    """The lengths of ``num_sequences`` sequences of at most ``context_length`` tokens.

    Checks requests against them, so that a wrong one ends in BadInput and never in native code.
    """

    def __init__(self, num_sequences: int, context_length: int, vocabulary_size: int) -> None:
        if num_sequences < 1:
            raise BadInput("num_sequences", num_sequences, "must be at least 1")
        if context_length < 1:
            raise BadInput("context_length", context_length, "must be at least 1 token")
        self.num_sequences = num_sequences
        self.context_length = context_length
        self.vocabulary_size = vocabulary_size
        self.lengths: npt.NDArray[np.int32] = np.zeros(num_sequences, np.int32)

    def check_rows(self, rows: Rows) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """The first row of each sequence's run, and each run's number of rows.

        Raises BadInput unless every row names a sequence and a token that exist, and each
        sequence's rows are consecutive and continue at its present length.
        """
        num_rows = len(rows.token)
        if not (len(rows.seq) == len(rows.position) == len(rows.wants_logits) == num_rows):
            raise BadInput("rows", num_rows, "seq, position, token, wants_logits differ in length")
        if num_rows == 0:
            empty = np.zeros(0, np.intp)
            return empty, empty
        _check_range("seq", rows.seq, self.num_sequences, "sequence")
        _check_range("token", rows.token, self.vocabulary_size, "token id")
        changes = np.flatnonzero(rows.seq[1:] != rows.seq[:-1]) + 1
        starts = np.empty(len(changes) + 1, np.intp)
        starts[0], starts[1:] = 0, changes
        counts = np.empty_like(starts)
        counts[:-1], counts[-1] = changes - starts[:-1], num_rows - starts[-1]
        run_seqs = rows.seq[starts].tolist()
        if len(set(run_seqs)) != len(run_seqs):
            raise BadInput("seq", rows.seq.tolist(), "rows of one sequence must be consecutive")
        for seq, start, count in zip(run_seqs, starts.tolist(), counts.tolist(), strict=True):
            length = int(self.lengths[seq])
            wrong = np.flatnonzero(
                rows.position[start : start + count] != np.arange(length, length + count)
            )
            if len(wrong):
                row = start + int(wrong[0])
                raise BadInput(
                    "position",
                    int(rows.position[row]),
                    f"row {row} must continue sequence {seq} at position {length + int(wrong[0])}",
                )
            if length + count > self.context_length:
                raise BadInput(
                    "position",
                    length + count - 1,
                    f"the context holds {self.context_length} tokens; shorten the prompt or serve "
                    "with a larger context_length",
                )
        return starts, counts

    def extend(self, seqs: npt.NDArray[np.int32], counts: npt.NDArray[np.intp]) -> None:
        """Record that a forward pass has fed ``counts`` tokens to ``seqs``."""
        self.lengths[seqs] += counts.astype(np.int32)

    def check_length(self, seq: int, length: int) -> None:
        """Raise BadInput unless the sequence exists and holds at least ``length`` tokens."""
        self.check_seq(seq)
        if not 0 <= length <= self.lengths[seq]:
            raise BadInput(
                "length", length, f"sequence {seq} holds {self.lengths[seq]} tokens; keep 0 to that"
            )

    def check_seq(self, seq: int) -> None:
        """Raise BadInput unless the sequence exists."""
        if not 0 <= seq < self.num_sequences:
            raise BadInput("seq", seq, f"must lie between 0 and {self.num_sequences - 1}")


def _check_range(field: str, values: npt.NDArray[np.int32], end: int, noun: str) -> None:
    if int(values.min()) < 0 or int(values.max()) >= end:
        bad = values[(values < 0) | (values >= end)][0]
        raise BadInput(field, int(bad), f"no such {noun}; must lie between 0 and {end - 1}")
