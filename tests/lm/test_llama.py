from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from lm_tiny_gguf import tiny_llama, tiny_mamba
from lm_walk import rows_of

from multispin.catalog import find_model
from multispin.errors import BadInput, EngineFailed, UnsupportedModel
from multispin.lm import llama_library
from multispin.lm.llama import LlamaModel
from multispin.lm.llama_library import load_library


def opened(path: Path, **options: int) -> LlamaModel:
    settings = {"num_sequences": 2, "context_length": 64, "threads": 1} | options
    return LlamaModel(path=path, name="it", **settings)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"model = .*no\.gguf: No such file"):
        opened(tmp_path / "no.gguf")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="Is a directory"):
        opened(tmp_path)


def test_not_a_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "it.gguf"
    path.write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(BadInput, match="not a GGUF file"):
        opened(path)


@pytest.mark.parametrize("keep", [6, 5000, 40_000_000])
def test_truncated_file(tmp_path: Path, small_model_path: Path, keep: int) -> None:
    path = tmp_path / "it.gguf"
    with small_model_path.open("rb") as file:
        path.write_bytes(file.read(keep))
    with pytest.raises(BadInput, match=r"the file is damaged: .+; get it again"):
        opened(path)


def test_what_is_sound_and_unknown_is_refused_by_llama_cpp(tmp_path: Path) -> None:
    path = tmp_path / "it.gguf"
    path.write_bytes(tiny_llama(causal=True).replace(b"llama", b"lhama"))
    with pytest.raises(BadInput, match=r"llama\.cpp cannot load it \(.+\); get it again"):
        opened(path)


def test_recurrent_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "it.gguf"
    path.write_bytes(tiny_mamba())
    with pytest.raises(UnsupportedModel, match="model = it: has recurrent layers"):
        opened(path)


def test_model_without_causal_attention_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "it.gguf"
    path.write_bytes(tiny_llama(causal=False))
    with pytest.raises(UnsupportedModel, match="model = it: its attention is not causal"):
        opened(path)
    path.write_bytes(tiny_llama(causal=True))
    model = opened(path)
    assert model.vocabulary.end_ids == {2}
    model.close()


def test_context_longer_than_the_model_knows(small_model_path: Path) -> None:
    with pytest.raises(BadInput, match="context_length = 8193: it was trained on 8192 tokens"):
        opened(small_model_path, context_length=8193)


@pytest.mark.parametrize(
    ("option", "value"), [("num_sequences", 0), ("num_sequences", 256), ("threads", 0)]
)
def test_bad_settings(small_model_path: Path, option: str, value: int) -> None:
    with pytest.raises(BadInput, match=f"{option} = {value}"):
        opened(small_model_path, **{option: value})


def test_more_rows_than_a_batch_holds(llama: LlamaModel) -> None:
    with pytest.raises(BadInput, match="rows = 65: at most 64 in one batch"):
        llama.forward(rows_of(0, 0, np.zeros(65, np.int32)))


def test_failed_decode_leaves_the_sequences_as_they_were(
    llama: LlamaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = llama.tokenize("one two three four")
    llama.free(0)
    expected = llama.forward(rows_of(0, 0, ids)).copy()
    llama.free(0)
    decode = llama._c.llama_decode

    def decode_and_fail(context: int, batch: object) -> int:
        decode(context, batch)
        return 1

    with monkeypatch.context() as patch:
        patch.setattr(llama._c, "llama_decode", decode_and_fail)
        with pytest.raises(EngineFailed, match="no room in the KV cache for"):
            llama.forward(rows_of(0, 0, ids))
    assert np.array_equal(llama.forward(rows_of(0, 0, ids)), expected)
    llama.free(0)


@pytest.mark.parametrize("reproducible", [False, True])
def test_as_many_sequences_as_llama_holds(small_model_path: Path, reproducible: bool) -> None:
    model = LlamaModel(
        path=small_model_path,
        name="small",
        num_sequences=255,
        context_length=8,
        threads=2,
        reproducible=reproducible,
        max_batch_rows=256,
    )
    token = np.array([7], np.int32)
    first = model.forward(rows_of(0, 0, token)).copy()
    assert np.abs(model.forward(rows_of(254, 0, token)) - first).max() < 1.5
    model.fork(254, 0, 1)
    model.close()
    model.close()


def test_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(llama_library._CONTEXT_DEFAULTS, "n_ubatch", 511)
    with pytest.raises(EngineFailed, match="default n_ubatch reads 512 instead of 511"):
        load_library.__wrapped__()


def test_named_library_is_missing_or_no_llama(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(llama_library.LIBRARY_VARIABLE, str(tmp_path / "libllama.so"))
    with pytest.raises(EngineFailed, match=r"MULTISPIN_LLAMA_LIB = .*: no such file"):
        load_library.__wrapped__()
    (tmp_path / "libllama.so").write_bytes(b"\x7fELF")
    with pytest.raises(EngineFailed, match=r"cannot be loaded .*unset MULTISPIN_LLAMA_LIB"):
        load_library.__wrapped__()


def test_broken_llama_cpp_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp" / "__init__.py").write_text("raise OSError('no libgomp')")
    monkeypatch.delenv(llama_library.LIBRARY_VARIABLE, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    monkeypatch.delitem(sys.modules, "llama_cpp.llama_cpp", raising=False)
    with pytest.raises(EngineFailed, match=r"llama-cpp-python: cannot be loaded \(no libgomp\)"):
        load_library.__wrapped__()


def test_describe() -> None:
    found = load_library().describe()
    assert Path(str(found["path"])).is_file()
    assert found["kind"] in ("custom", "llama-cpp-python", "xllamacpp")
    assert found["version"]
    assert "CPU" in str(found["system"])


@pytest.mark.models
def test_fingerprints_tell_which_models_fit_together(llama: LlamaModel) -> None:
    qwens = [
        opened(find_model(name)).vocabulary for name in ("qwen2.5-coder-1.5b", "qwen2.5-coder-0.5b")
    ]
    assert qwens[0].fingerprint == qwens[1].fingerprint != llama.vocabulary.fingerprint
    assert qwens[0].size == qwens[1].size == 151665
    assert qwens[0].special_pieces[151645] == "<|im_end|>"
    assert {151643, 151645} <= qwens[0].end_ids
