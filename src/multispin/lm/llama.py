"""llama.cpp as a `LanguageModel`: one context, all sequences, one ``llama_decode`` per batch."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import numpy.typing as npt

from multispin.errors import BadInput, EngineFailed, UnsupportedModel
from multispin.lm.base import Rows
from multispin.lm.gguf import check_gguf
from multispin.lm.llama_library import (
    FLASH_ATTN_ENABLED,
    LOAD_MODE_READ,
    LlamaLibrary,
    collected_errors,
    load_library,
)
from multispin.lm.llama_vocabulary import read_vocabulary, tokenize
from multispin.lm.pool import Pool
from multispin.lm.reproducible import MAX_MICROBATCH_ROWS, Microbatch, plan_microbatches
from multispin.types import Logits, TokenIds

MAX_SEQUENCES = 255  # llama.cpp holds 256 per context
_MICROBATCH_ROWS = 64  # rows computed at once: more would cost memory (rows x vocabulary), not time


class LlamaModel:
    """A GGUF file in llama.cpp. Not thread-safe: one caller at a time.

    ``context_length`` is per sequence, ``max_batch_rows`` the most rows of one `forward`,
    ``gpu_layers`` how many layers a GPU build keeps on the GPU (-1: all).

    ``reproducible``: logits are a pure function of a sequence's tokens, bit by bit, whatever else
    is in the batch and whatever was rolled back (`multispin.lm.reproducible` says how); slower.

    Raises BadInput for a file that is missing, damaged or not GGUF, UnsupportedModel for a model
    whose state cannot be truncated, EngineFailed when llama.cpp cannot run.
    """

    def __init__(
        self,
        *,
        path: Path | str,
        name: str,
        num_sequences: int,
        context_length: int,
        threads: int,
        gpu_layers: int = 0,
        reproducible: bool = False,
        max_batch_rows: int = 64,
    ) -> None:
        if not 1 <= num_sequences <= MAX_SEQUENCES:
            raise BadInput("num_sequences", num_sequences, f"must be 1 to {MAX_SEQUENCES}")
        if threads < 1:
            raise BadInput("threads", threads, "must be at least 1")
        if max_batch_rows < 1:
            raise BadInput("max_batch_rows", max_batch_rows, "must be at least 1")
        self.name = name
        self.num_sequences = num_sequences
        self.context_length = context_length
        self.reproducible = reproducible
        self.max_batch_rows = max_batch_rows
        self._library = load_library()
        self._c = self._library.c
        self._context = 0
        self._model = _load_model(self._library, Path(path), gpu_layers, reproducible)
        try:
            _refuse_unsupported(self._library, self._model, name)
            self.vocabulary = read_vocabulary(self._library, self._model)
            self._pool = Pool(num_sequences, context_length, self.vocabulary.size)
            self._context = self._new_context(threads)
        except BaseException:
            self.close()
            raise
        self._memory = self._c.llama_get_memory(self._context)
        self._num_logits = self._c.llama_vocab_n_tokens(self._c.llama_model_get_vocab(self._model))
        self._batch = _BatchArrays(
            self._library, MAX_MICROBATCH_ROWS if reproducible else max_batch_rows
        )
        # Only reproducible mode needs it: its logits come from several calls.
        self._gathered: Logits = np.empty(
            (max_batch_rows if reproducible else 0, self.vocabulary.size), np.float32
        )

    def tokenize(self, text: str, *, parse_special: bool = False) -> TokenIds:
        return tokenize(self._library, self._model, text, parse_special=parse_special)

    def forward(self, rows: Rows) -> Logits:
        """See `LanguageModel.forward`. BadInput for rows that do not fit, EngineFailed from C."""
        if len(rows.token) > self.max_batch_rows:
            raise BadInput("rows", len(rows.token), f"at most {self.max_batch_rows} in one batch")
        starts, counts = self._pool.check_rows(rows)
        if len(starts) == 0:
            return np.zeros((0, self.vocabulary.size), np.float32)
        seqs = rows.seq[starts]
        try:
            if self.reproducible:
                logits = self._forward_reproducible(rows, seqs, starts, counts)
            else:
                logits = self._decode(rows.seq, rows.position, rows.token, rows.wants_logits)
        except EngineFailed:
            for seq in seqs.tolist():  # part of the batch may have got into the cache
                self._remove_from(seq, int(self._pool.lengths[seq]))
            raise
        self._pool.extend(seqs, counts)
        return logits

    def truncate(self, seq: int, length: int) -> None:
        self._pool.check_length(seq, length)
        if length < self._pool.lengths[seq]:
            self._remove_from(seq, length)
            self._pool.lengths[seq] = length

    def fork(self, src: int, dst: int, length: int) -> None:
        self._pool.check_length(src, length)
        self._pool.check_seq(dst)
        if src == dst:
            self.truncate(src, length)
            return
        self.free(dst)
        if length == 0:
            return
        # A partial copy between streams aborts the process: copy whole, then cut.
        self._c.llama_memory_seq_cp(self._memory, src, dst, -1, -1)
        self._remove_from(dst, length)
        self._pool.lengths[dst] = length

    def free(self, seq: int) -> None:
        self._pool.check_seq(seq)
        self.truncate(seq, 0)

    def close(self) -> None:
        """Give the memory back. The model is unusable afterwards; a second call does nothing."""
        if self._context:
            self._c.llama_free(self._context)
            self._context = 0
        if self._model:
            self._c.llama_model_free(self._model)
            self._model = 0

    def _new_context(self, threads: int) -> int:
        params = self._c.llama_context_default_params()
        num_trained: int = self._c.llama_model_n_ctx_train(self._model)
        if self.context_length > num_trained:
            raise BadInput(
                "context_length",
                self.context_length,
                f"{self.name} was trained on {num_trained} tokens; take at most that",
            )
        if self.reproducible:
            params.n_batch = params.n_ubatch = MAX_MICROBATCH_ROWS
            params.flash_attn_type = FLASH_ATTN_ENABLED
        else:
            params.n_batch = self.max_batch_rows
            params.n_ubatch = min(self.max_batch_rows, _MICROBATCH_ROWS)
        # One cache for all sequences keeps batches of any shape whole. A cache for each is needed
        # in reproducible mode (rolling back must not reorder anyone's cells) and for sliding
        # windows (in a common cache, a cell that left its window is overwritten, although rolling
        # back may bring the window back to it).
        params.kv_unified = not self.reproducible and self._c.llama_model_n_swa(self._model) == 0
        if params.kv_unified:
            num_cells = self.num_sequences * self.context_length
        else:
            per_sequence = self.context_length + MAX_MICROBATCH_ROWS  # room for filling rows
            num_cells = self.num_sequences * (-(-per_sequence // 256) * 256)
        params.n_ctx = max(num_cells, params.n_batch)
        params.n_seq_max = self.num_sequences
        params.n_outputs_max = max(params.n_batch, self.num_sequences)
        params.n_outputs_max_per_seq = 0
        params.n_threads = params.n_threads_batch = threads
        params.swa_full = True  # a sliding window that forgets could not be rolled back
        with collected_errors() as errors:
            context = self._c.llama_init_from_model(self._model, params)
        if not context:
            raise EngineFailed(
                f"{self.name}: llama.cpp cannot create a context of {self.num_sequences} x "
                f"{self.context_length} tokens ({_last(errors)}); lower num_sequences or "
                "context_length"
            )
        if not self._c.llama_get_memory(context) or not self._c.llama_get_causal_attn(context):
            self._c.llama_free(context)
            raise UnsupportedModel(
                "model", self.name, "its attention is not causal; take one that writes text"
            )
        return int(context)

    def _decode(
        self,
        seq: npt.NDArray[np.int32],
        position: npt.NDArray[np.int32],
        token: TokenIds,
        wants_logits: npt.NDArray[np.bool_],
    ) -> Logits:
        """One ``llama_decode``; a view of its logits."""
        batch = self._batch.fill(seq, position, token, wants_logits)
        code = self._c.llama_decode(self._context, batch)
        if code != 0:
            raise EngineFailed(f"{self.name}: {_decode_failure(code, len(token))}")
        num_wanted = int(np.count_nonzero(wants_logits))
        if num_wanted == 0:
            return np.zeros((0, self.vocabulary.size), np.float32)
        address = self._c.llama_get_logits(self._context)
        flat = (ctypes.c_float * (num_wanted * self._num_logits)).from_address(address)
        logits: Logits = np.frombuffer(flat, np.float32).reshape(num_wanted, self._num_logits)
        return logits[:, : self.vocabulary.size]

    def _forward_reproducible(
        self,
        rows: Rows,
        seqs: npt.NDArray[np.int32],
        starts: npt.NDArray[np.intp],
        counts: npt.NDArray[np.intp],
    ) -> Logits:
        """The batch as a series of microbatches of known shape; logits gathered in row order."""
        wanted_rank = np.cumsum(rows.wants_logits) - 1
        first_row = dict(zip(seqs.tolist(), starts.tolist(), strict=True))
        remaining = dict(zip(seqs.tolist(), counts.tolist(), strict=True))
        for microbatch in plan_microbatches(remaining, self.num_sequences):
            self._decode_microbatch(rows, microbatch, first_row, wanted_rank)
        return self._gathered[: int(np.count_nonzero(rows.wants_logits))]

    def _decode_microbatch(
        self,
        rows: Rows,
        microbatch: Microbatch,
        first_row: dict[int, int],
        wanted_rank: npt.NDArray[np.intp],
    ) -> None:
        source = microbatch.source_rows(first_row)  # [sequences, rows each], -1: filling
        real = source >= 0
        num_each = source.shape[1]
        seq = np.arange(microbatch.first_seq, microbatch.first_seq + len(source), dtype=np.int32)
        fed = np.array([microbatch.fed[s] for s in seq.tolist()], np.int32)
        begin = self._pool.lengths[seq] + fed
        position = (begin[:, None] + np.arange(num_each, dtype=np.int32)).astype(np.int32)
        flat = source.ravel()
        token = np.where(flat >= 0, rows.token[flat], 0).astype(np.int32)
        wants = np.where(flat >= 0, rows.wants_logits[flat], False)
        outputs = wants.copy()
        if np.count_nonzero(wants) == 1:
            # A lone output row would take other kernels in the last layer and the output head.
            outputs[0 if not wants[0] else 1] = True
        logits = self._decode(np.repeat(seq, num_each), position.ravel(), token, outputs)
        self._gathered[wanted_rank[flat[wants]]] = logits[wants[outputs]]
        for index in np.flatnonzero(~real.all(axis=1)).tolist():
            self._remove_from(int(seq[index]), int(begin[index] + real[index].sum()))

    def _remove_from(self, seq: int, length: int) -> None:
        if not self._c.llama_memory_seq_rm(self._memory, seq, length, -1):
            raise EngineFailed(f"{self.name}: llama.cpp cannot truncate sequence {seq} to {length}")


class _BatchArrays:
    """The arrays of a ``llama_batch``, allocated once, filled by whole-array copies."""

    def __init__(self, library: LlamaLibrary, max_rows: int) -> None:
        self._token = np.zeros(max_rows, np.int32)
        self._position = np.zeros(max_rows, np.int32)
        self._seq = np.zeros(max_rows, np.int32)
        self._wants_logits = np.zeros(max_rows, np.int8)
        self._num_seqs = np.ones(max_rows, np.int32)
        # C wants a pointer to each row's list of sequences: entry i points at _seq[i], for ever.
        self._seq_pointers = (
            self._seq.ctypes.data + self._seq.itemsize * np.arange(max_rows)
        ).astype(np.uintp)
        self._batch = library.batch()
        for field, array in (
            ("token", self._token),
            ("pos", self._position),
            ("n_seq_id", self._num_seqs),
            ("seq_id", self._seq_pointers),
            ("logits", self._wants_logits),
        ):
            # The two bindings type these fields differently; an address fits both this way.
            offset = getattr(library.batch, field).offset
            ctypes.c_void_p.from_buffer(self._batch, offset).value = array.ctypes.data

    def fill(
        self,
        seq: npt.NDArray[np.int32],
        position: npt.NDArray[np.int32],
        token: TokenIds,
        wants_logits: npt.NDArray[np.bool_],
    ) -> ctypes.Structure:
        num_rows = len(token)
        self._seq[:num_rows] = seq
        self._position[:num_rows] = position
        self._token[:num_rows] = token
        self._wants_logits[:num_rows] = wants_logits
        self._batch.n_tokens = num_rows
        return self._batch


def _load_model(library: LlamaLibrary, path: Path, gpu_layers: int, reproducible: bool) -> int:
    check_gguf(path)
    params = library.c.llama_model_default_params()
    params.n_gpu_layers = gpu_layers
    if reproducible:
        params.use_extra_bufts = False  # repacked weights take kernels that depend on row counts
    else:
        # Repacking copies weights: with a memory map, the originals stay resident beside the copy.
        params.load_mode = LOAD_MODE_READ
    with collected_errors() as errors:
        model = library.c.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise BadInput("model", path, f"llama.cpp cannot load it ({_first(errors)}); get it again")
    return int(model)


def _refuse_unsupported(library: LlamaLibrary, model: int, name: str) -> None:
    c = library.c
    if c.llama_model_is_recurrent(model) or c.llama_model_is_hybrid(model):
        raise UnsupportedModel(
            "model",
            name,
            "has recurrent layers, whose state cannot be rolled back; take a pure attention model",
        )
    if c.llama_model_is_diffusion(model):
        raise UnsupportedModel(
            "model", name, "a diffusion model; take one that predicts the next token"
        )
    if c.llama_model_has_encoder(model) or not c.llama_model_has_decoder(model):
        raise UnsupportedModel("model", name, "has an encoder; take a decoder-only model")


def _decode_failure(code: int, num_rows: int) -> str:
    if code == 1:
        return f"no room in the KV cache for {num_rows} rows; lower num_sequences or free sequences"
    return (
        f"llama_decode failed with code {code} on {num_rows} rows; see the log of multispin.llama"
    )


def _first(errors: list[str]) -> str:
    return errors[0] if errors else "no reason given"


def _last(errors: list[str]) -> str:
    return errors[-1] if errors else "no reason given"
