"""The engine's own process: reads requests on its standard input, answers on its output.

Run by net.engine_process as ``python -m multispin.net.engine_child``. Each message is a
MessagePack struct behind its length in four bytes. The first request loads the model.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import BinaryIO, TypeAlias

import msgspec
import numpy as np

from multispin.core.cost import CostEngine
from multispin.core.engine import Batch, Engine, EngineInfo, StepResult
from multispin.errors import BadInput, MultispinError
from multispin.net.loading import TargetOptions, load_engine


class Load(msgspec.Struct, array_like=True, tag=0):
    options: TargetOptions


class Step(msgspec.Struct, array_like=True, tag=1):
    batch: Batch


class TokenizeText(msgspec.Struct, array_like=True, tag=2):
    text: str
    parse_special: bool


class Loaded(msgspec.Struct, array_like=True, tag=0):
    info: EngineInfo


class Stepped(msgspec.Struct, array_like=True, tag=1):
    result: StepResult


class Tokenized(msgspec.Struct, array_like=True, tag=2):
    ids: bytes  # little-endian int32


class Failed(msgspec.Struct, array_like=True, tag=3):
    """The request could not be served; ``bad_input`` (field, value, remedy) if the caller erred.

    A step never fails this way: whatever goes wrong in one ends the process, which is replaced.
    """

    code: str
    message: str
    bad_input: tuple[str, str, str] | None


Request: TypeAlias = Load | Step | TokenizeText
Response: TypeAlias = Loaded | Stepped | Tokenized | Failed


def main() -> None:
    # llama.cpp and its neighbours may print: what they print must not mix with the answers.
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    encoder = msgspec.msgpack.Encoder()
    decoder = msgspec.msgpack.Decoder(Request)
    engine: Engine | CostEngine | None = None
    while (data := _read(requests)) is not None:
        answer: Response
        match decoder.decode(data):
            case Load(options):
                try:
                    engine = load_engine(options)
                    gc.collect()
                    gc.freeze()  # what is here now stays: looking through it again delays a pass
                    answer = Loaded(engine.info)
                except MultispinError as error:
                    answer = _failed(error)
            case Step(batch):
                assert engine is not None
                answer = Stepped(engine.step(batch))
            case TokenizeText(text, parse_special):
                assert engine is not None
                try:
                    ids = engine.tokenize(text, parse_special)
                    answer = Tokenized(ids.astype(np.dtype("<i4")).tobytes())
                except MultispinError as error:
                    answer = _failed(error)
        body = encoder.encode(answer)
        answers.write(len(body).to_bytes(4, "little") + body)
        answers.flush()


def _failed(error: MultispinError) -> Failed:
    if isinstance(error, BadInput):
        bad_input = (error.field, str(error.value), error.remedy)
        return Failed(error.code, str(error), bad_input)
    return Failed(error.code, str(error), None)


def _read(stream: BinaryIO) -> bytes | None:
    head = stream.read(4)
    if len(head) < 4:
        return None  # the server is gone, and so are we
    return stream.read(int.from_bytes(head, "little"))


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, BrokenPipeError):  # the server is gone
        sys.exit(1)
