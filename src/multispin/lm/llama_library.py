"""llama.cpp's C API through ctypes: the library that is there, and the functions that we call.

Three sources, in this order: the shared library that ``MULTISPIN_LLAMA_LIB`` names, that of an
installed llama-cpp-python (native builds, GPU; its own structure classes are used, because its
version differs from ours), and the shared object inside the pinned xllamacpp wheel. Structures are
passed by value, so a library of another version would misread them: `load_library` reads the
default parameters back and refuses a library in which they are not where they should be.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_bool, c_char_p, c_float, c_int, c_int32, c_size_t, c_uint32, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from multispin.errors import EngineFailed

XLLAMACPP_VERSION = "2026.10.11549"  # llama.cpp b11549; the structures below are this build's
LIBRARY_VARIABLE = "MULTISPIN_LLAMA_LIB"

TOKEN_ATTR_UNKNOWN = 1 << 0
TOKEN_ATTR_UNUSED = 1 << 1
TOKEN_ATTR_CONTROL = 1 << 3
FLASH_ATTN_ENABLED = 1
LOAD_MODE_READ = 0  # no memory map

LibraryKind: TypeAlias = Literal["custom", "llama-cpp-python", "xllamacpp"]

logger = logging.getLogger("multispin.llama")


class ModelParams(ctypes.Structure):
    """``struct llama_model_params`` of b11549."""

    _fields_ = (
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int),
        ("load_mode", c_int),
        ("lazy_mode", c_int),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    )


class ContextParams(ctypes.Structure):
    """``struct llama_context_params`` of b11549."""

    _fields_ = (
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int),
        ("rope_scaling_type", c_int),
        ("pooling_type", c_int),
        ("attention_type", c_int),
        ("flash_attn_type", c_int),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int),
        ("type_v", c_int),
        ("moe_cache_size", c_size_t),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    )


class Batch(ctypes.Structure):
    """``struct llama_batch``: every array has ``n_tokens`` entries."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("token", c_void_p),
        ("embd", c_void_p),
        ("pos", c_void_p),
        ("n_seq_id", c_void_p),
        ("seq_id", c_void_p),
        ("logits", c_void_p),
    )


# What the defaults of llama.cpp are, spread over each structure: a field inserted, removed or
# reordered anywhere makes at least one of them read wrong.
_MODEL_DEFAULTS = {
    "n_gpu_layers": -1,
    "split_mode": 1,
    "load_mode": -1,
    "lazy_mode": 1,
    "main_gpu": 0,
    "vocab_only": False,
    "check_tensors": False,
    "use_extra_bufts": True,
    "no_host": False,
    "no_alloc": False,
    "load_mtp": False,
}
_CONTEXT_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_rs_seq": 0,
    "n_outputs_max": 0,
    "n_outputs_max_per_seq": 1,
    "n_threads": 4,
    "n_threads_batch": 4,
    "ctx_type": 0,
    "rope_scaling_type": -1,
    "pooling_type": -1,
    "attention_type": -1,
    "flash_attn_type": -1,
    "rope_freq_base": 0.0,
    "rope_freq_scale": 0.0,
    "yarn_ext_factor": -1.0,
    "yarn_beta_slow": -1.0,
    "yarn_orig_ctx": 0,
    "defrag_thold": -1.0,
    "type_k": 1,
    "type_v": 1,
    "embeddings": False,
    "offload_kqv": True,
    "no_perf": True,
    "op_offload": True,
    "swa_full": True,
    "kv_unified": False,
    "n_samplers": 0,
}

_LOG_CALLBACK = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
_LOG_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}


class _LogSink:
    """Puts llama.cpp's log lines into `logger`; errors can be collected instead."""

    def __init__(self) -> None:
        self.collected: list[str] | None = None
        self._level = logging.INFO
        self._line = ""

    def write(self, level: int, text: bytes | None, _user_data: object) -> None:
        if level != 5:  # 5 continues the line before
            self._level = _LOG_LEVELS.get(level, logging.DEBUG)
        if self.collected is None and not logger.isEnabledFor(self._level):
            return
        self._line += (text or b"").decode(errors="replace")
        if not self._line.endswith("\n"):
            return
        line, self._line = self._line.strip(), ""
        if self.collected is None:
            logger.log(self._level, "%s", line)
        elif self._level >= logging.ERROR:
            self.collected.append(line)
        else:  # warnings about a file that loads are nothing that its user could act on
            logger.log(min(self._level, logging.INFO), "%s", line)


_log_sink = _LogSink()
# Referenced for the life of the process: llama.cpp keeps calling it, even while Python exits.
_log_callback = _LOG_CALLBACK(_log_sink.write)


@contextmanager
def collected_errors() -> Iterator[list[str]]:
    """Collect llama.cpp's error lines for an exception's message instead of logging them."""
    lines: list[str] = []
    _log_sink.collected = lines
    try:
        yield lines
    finally:
        _log_sink.collected = None


@dataclass(frozen=True)
class LlamaLibrary:
    """A loaded llama.cpp: ``c`` has the bound functions, the rest says where it came from."""

    c: Any
    path: Path
    kind: LibraryKind
    version: str
    model_params: type[ctypes.Structure]
    context_params: type[ctypes.Structure]
    batch: type[ctypes.Structure]

    def describe(self) -> dict[str, str | bool]:
        """For ``doctor`` and bug reports: path, kind, version, processor features, GPU support."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "version": self.version,
            "system": self.c.llama_print_system_info().decode().strip(" |\n"),
            "gpu": bool(self.c.llama_supports_gpu_offload()),
        }


@functools.cache
def load_library() -> LlamaLibrary:
    """Load and check llama.cpp, once per process.

    Raises EngineFailed when no library is found, or when the one found is of another version.
    """
    path, kind, version, model_params, context_params, batch = _locate()
    try:
        c = ctypes.CDLL(str(path))
    except OSError as error:
        remedy = _OPENMP if "libgomp" in str(error) else _REMEDIES[kind]
        raise EngineFailed(f"{path}: cannot be loaded ({error}); {remedy}") from error
    try:
        for name, (restype, argtypes) in _prototypes(model_params, context_params, batch).items():
            function = getattr(c, name)
            function.restype = restype
            function.argtypes = argtypes
    except AttributeError as error:
        raise EngineFailed(f"{path}: has no {name}; {_REMEDIES[kind]}") from error
    _check_defaults(c.llama_model_default_params, model_params, _MODEL_DEFAULTS, path, kind)
    _check_defaults(c.llama_context_default_params, context_params, _CONTEXT_DEFAULTS, path, kind)
    c.llama_log_set(_log_callback, None)
    c.llama_backend_init()
    version = version or c.llama_version().decode()
    return LlamaLibrary(c, path, kind, version, model_params, context_params, batch)


_REMEDIES: dict[LibraryKind, str] = {
    "custom": f"unset {LIBRARY_VARIABLE}, or build llama.cpp b{XLLAMACPP_VERSION[-5:]}",
    "llama-cpp-python": "install llama-cpp-python==0.3.36 again (`make native`), or uninstall it",
    "xllamacpp": f"pip install xllamacpp=={XLLAMACPP_VERSION}",
}
_OPENMP = "install GNU's OpenMP library (on Debian and Ubuntu: apt install libgomp1)"

_Located: TypeAlias = tuple[
    Path,
    LibraryKind,
    str,
    type[ctypes.Structure],
    type[ctypes.Structure],
    type[ctypes.Structure],
]


def _locate() -> _Located:
    named = os.environ.get(LIBRARY_VARIABLE)
    if named:
        if not Path(named).is_file():
            raise EngineFailed(f"{LIBRARY_VARIABLE} = {named}: no such file; name libllama.so")
        return Path(named), "custom", "", ModelParams, ContextParams, Batch
    if importlib.util.find_spec("llama_cpp") is not None:
        try:
            native = importlib.import_module("llama_cpp.llama_cpp")
        except (ImportError, OSError, RuntimeError) as error:
            raise EngineFailed(
                f"llama-cpp-python: cannot be loaded ({error}); {_REMEDIES['llama-cpp-python']}"
            ) from error
        return (
            Path(native._lib._name),
            "llama-cpp-python",
            importlib.metadata.version("llama-cpp-python"),
            native.llama_model_params,
            native.llama_context_params,
            native.llama_batch,
        )
    # Found without importing the package, which would start its server's machinery.
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise EngineFailed(
            f"no llama.cpp library: pip install xllamacpp=={XLLAMACPP_VERSION}, or llama-cpp-python"
        )
    version = importlib.metadata.version("xllamacpp")
    if version != XLLAMACPP_VERSION:
        raise EngineFailed(f"xllamacpp {version}: another version; {_REMEDIES['xllamacpp']}")
    libraries = sorted(Path(spec.origin).parent.glob("xllamacpp*.so"))
    if not libraries:
        raise EngineFailed(
            f"xllamacpp in {Path(spec.origin).parent}: exports no llama.cpp functions on this "
            f"platform; install llama-cpp-python, or name a library in {LIBRARY_VARIABLE}"
        )
    return libraries[0], "xllamacpp", version, ModelParams, ContextParams, Batch


def _prototypes(
    model_params: type[ctypes.Structure],
    context_params: type[ctypes.Structure],
    batch: type[ctypes.Structure],
) -> dict[str, tuple[Any, list[Any]]]:
    """Every function that multispin calls: result and argument types. Handles are ``void *``."""
    return {
        "llama_version": (c_char_p, []),
        "llama_print_system_info": (c_char_p, []),
        "llama_supports_gpu_offload": (c_bool, []),
        "llama_backend_init": (None, []),
        "llama_log_set": (None, [_LOG_CALLBACK, c_void_p]),
        "llama_model_default_params": (model_params, []),
        "llama_context_default_params": (context_params, []),
        "llama_model_load_from_file": (c_void_p, [c_char_p, model_params]),
        "llama_model_free": (None, [c_void_p]),
        "llama_model_n_ctx_train": (c_int32, [c_void_p]),
        "llama_model_n_swa": (c_int32, [c_void_p]),
        "llama_model_is_recurrent": (c_bool, [c_void_p]),
        "llama_model_is_hybrid": (c_bool, [c_void_p]),
        "llama_model_is_diffusion": (c_bool, [c_void_p]),
        "llama_model_has_encoder": (c_bool, [c_void_p]),
        "llama_model_has_decoder": (c_bool, [c_void_p]),
        "llama_model_chat_template": (c_char_p, [c_void_p, c_char_p]),
        "llama_model_get_vocab": (c_void_p, [c_void_p]),
        "llama_init_from_model": (c_void_p, [c_void_p, context_params]),
        "llama_free": (None, [c_void_p]),
        "llama_decode": (c_int32, [c_void_p, batch]),
        "llama_get_logits": (c_void_p, [c_void_p]),
        "llama_get_causal_attn": (c_bool, [c_void_p]),
        "llama_get_memory": (c_void_p, [c_void_p]),
        "llama_memory_seq_rm": (c_bool, [c_void_p, c_int32, c_int32, c_int32]),
        "llama_memory_seq_cp": (None, [c_void_p, c_int32, c_int32, c_int32, c_int32]),
        "llama_vocab_n_tokens": (c_int32, [c_void_p]),
        "llama_vocab_get_text": (c_char_p, [c_void_p, c_int32]),
        "llama_vocab_get_attr": (c_int, [c_void_p, c_int32]),
        "llama_vocab_is_eog": (c_bool, [c_void_p, c_int32]),
        "llama_vocab_bos": (c_int32, [c_void_p]),
        "llama_vocab_get_add_bos": (c_bool, [c_void_p]),
        "llama_tokenize": (
            c_int32,
            [c_void_p, c_char_p, c_int32, c_void_p, c_int32, c_bool, c_bool],
        ),
        "llama_token_to_piece": (
            c_int32,
            [c_void_p, c_int32, c_void_p, c_int32, c_int32, c_bool],
        ),
    }


def _check_defaults(
    function: Any,
    structure: type[ctypes.Structure],
    expected: dict[str, Any],
    path: Path,
    kind: LibraryKind,
) -> None:
    """Read a structure of default parameters; EngineFailed when a field is not as expected."""

    class Roomy(ctypes.Structure):
        # A library with a longer structure writes into the tail instead of over our memory.
        _fields_ = (("params", structure), ("tail", ctypes.c_ubyte * 1024))

    function.restype = Roomy
    result = function()
    function.restype = structure
    for name, value in expected.items():
        found = getattr(result.params, name, None)
        if found != value:
            raise EngineFailed(
                f"{path}: another version of llama.cpp than this one is bound to "
                f"(default {name} reads {found} instead of {value}); {_REMEDIES[kind]}"
            )
