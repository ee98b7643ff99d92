"""The vocabulary of a GGUF file, read through llama.cpp."""

from __future__ import annotations

import ctypes
import re

import numpy as np

from multispin.lm.base import Vocabulary, fingerprint
from multispin.lm.llama_library import (
    TOKEN_ATTR_CONTROL,
    TOKEN_ATTR_UNKNOWN,
    TOKEN_ATTR_UNUSED,
    LlamaLibrary,
)
from multispin.types import TokenIds

_PADDING = re.compile(rb"\[PAD\d*\]")
_MEAN_PIECE_BYTES = 16  # first guess for the buffer; real vocabularies have 6 to 8


def read_vocabulary(library: LlamaLibrary, model: int) -> Vocabulary:
    """All token byte strings, special tokens, end tokens and the chat template of a loaded model.

    Ids at the end that only pad the embedding to a round size are left out.
    """
    c = library.c
    vocab = c.llama_model_get_vocab(model)
    size = _size_without_padding(library, vocab)
    pieces, offsets = _read_pieces(library, vocab, size)
    special_pieces = {}
    for token in np.flatnonzero(np.diff(offsets) == 0).tolist():
        if c.llama_vocab_get_attr(vocab, token) & (TOKEN_ATTR_CONTROL | TOKEN_ATTR_UNKNOWN):
            special_pieces[token] = c.llama_vocab_get_text(vocab, token).decode(errors="replace")
    is_end = c.llama_vocab_is_eog
    end_ids = frozenset(token for token in range(size) if is_end(vocab, token))
    template = c.llama_model_chat_template(model, None)
    return Vocabulary(
        pieces=pieces,
        offsets=offsets,
        end_ids=end_ids,
        bos_id=c.llama_vocab_bos(vocab) if c.llama_vocab_get_add_bos(vocab) else None,
        chat_template=template.decode() if template else None,
        special_pieces=special_pieces,
        fingerprint=fingerprint(pieces, offsets, special_pieces, end_ids),
    )


def tokenize(library: LlamaLibrary, model: int, text: str, *, parse_special: bool) -> TokenIds:
    """Token ids of a text, without BOS."""
    data = text.encode()
    vocab = library.c.llama_model_get_vocab(model)
    ids = np.empty(len(data) + 8, np.int32)
    while True:
        count = library.c.llama_tokenize(
            vocab, data, len(data), ids.ctypes.data, len(ids), False, parse_special
        )
        if count >= 0:
            return ids[:count].copy()
        ids = np.empty(-count, np.int32)


def _size_without_padding(library: LlamaLibrary, vocab: int) -> int:
    c = library.c
    size: int = c.llama_vocab_n_tokens(vocab)
    while size > 0:
        last = size - 1
        unused = c.llama_vocab_get_attr(vocab, last) & TOKEN_ATTR_UNUSED
        if not unused and not _PADDING.fullmatch(c.llama_vocab_get_text(vocab, last)):
            break
        size = last
    return size


def _read_pieces(
    library: LlamaLibrary, vocab: int, size: int
) -> tuple[bytes, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Each piece is written behind the one before it, into one buffer: no object per token."""
    to_piece = library.c.llama_token_to_piece
    room = _MEAN_PIECE_BYTES * size + 1024
    while True:
        buffer = ctypes.create_string_buffer(room)
        base = ctypes.addressof(buffer)
        lengths = np.zeros(size + 1, np.int64)
        end = 0
        for token in range(size):
            length = to_piece(vocab, token, base + end, room - end, 0, False)
            if length < 0:
                break
            lengths[token + 1] = length
            end += length
        else:
            return buffer.raw[:end], np.cumsum(lengths)
        room *= 2
