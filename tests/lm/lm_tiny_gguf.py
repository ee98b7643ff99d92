"""GGUF files of a few kilobytes, of kinds that are to be refused."""

from __future__ import annotations

import struct

_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_ALIGNMENT = 32


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: object) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", _BOOL, value)
        case int():
            return struct.pack("<II", _UINT32, value)
        case float():
            return struct.pack("<If", _FLOAT32, value)
        case str():
            return struct.pack("<I", _STRING) + _string(value)
        case [str(), *_]:
            return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_string, value))
        case [int(), *_]:
            return struct.pack(f"<IIQ{len(value)}i", _ARRAY, _INT32, len(value), *value)
    raise TypeError(value)


def gguf(metadata: dict[str, object], tensors: dict[str, tuple[int, ...]]) -> bytes:
    """A GGUF file whose tensors (name: shape, fastest axis first) are float32 zeros."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        head += _string(key) + _value(value)
    offset = 0
    for name, shape in tensors.items():
        head += _string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        head += struct.pack("<IQ", 0, offset)
        size = 4
        for extent in shape:
            size *= extent
        offset += -(-size // _ALIGNMENT) * _ALIGNMENT
    return head + bytes(-len(head) % _ALIGNMENT) + bytes(offset)


PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
TOKENIZER: dict[str, object] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": PIECES,
    "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256,
}


def tiny_llama(*, causal: bool) -> bytes:
    """One attention layer; when not ``causal``, an embedding model."""
    embedding, hidden = 32, 64
    metadata: dict[str, object] = {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.context_length": 64,
        "llama.embedding_length": embedding,
        "llama.feed_forward_length": hidden,
        "llama.attention.head_count": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.attention.causal": causal,
    }
    square = (embedding, embedding)
    tensors: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (embedding, len(PIECES)),
        "output_norm.weight": (embedding,),
        "blk.0.attn_norm.weight": (embedding,),
        "blk.0.attn_q.weight": square,
        "blk.0.attn_k.weight": square,
        "blk.0.attn_v.weight": square,
        "blk.0.attn_output.weight": square,
        "blk.0.ffn_norm.weight": (embedding,),
        "blk.0.ffn_gate.weight": (embedding, hidden),
        "blk.0.ffn_up.weight": (embedding, hidden),
        "blk.0.ffn_down.weight": (hidden, embedding),
    }
    return gguf(metadata | TOKENIZER, tensors)


def tiny_mamba() -> bytes:
    """One recurrent layer."""
    embedding, inner, state, convolution, rank = 32, 64, 16, 4, 2
    metadata: dict[str, object] = {
        "general.architecture": "mamba",
        "mamba.block_count": 1,
        "mamba.context_length": 64,
        "mamba.embedding_length": embedding,
        "mamba.feed_forward_length": 0,
        "mamba.attention.head_count": 0,
        "mamba.attention.layer_norm_rms_epsilon": 1e-5,
        "mamba.ssm.conv_kernel": convolution,
        "mamba.ssm.inner_size": inner,
        "mamba.ssm.state_size": state,
        "mamba.ssm.time_step_rank": rank,
    }
    tensors = {
        "token_embd.weight": (embedding, len(PIECES)),
        "output_norm.weight": (embedding,),
        "blk.0.attn_norm.weight": (embedding,),
        "blk.0.ssm_in.weight": (embedding, 2 * inner),
        "blk.0.ssm_conv1d.weight": (convolution, inner),
        "blk.0.ssm_conv1d.bias": (inner,),
        "blk.0.ssm_x.weight": (inner, rank + 2 * state),
        "blk.0.ssm_dt.weight": (rank, inner),
        "blk.0.ssm_dt.bias": (inner,),
        "blk.0.ssm_a": (state, inner),
        "blk.0.ssm_d": (inner,),
        "blk.0.ssm_out.weight": (inner, embedding),
    }
    return gguf(metadata | TOKENIZER, tensors)
