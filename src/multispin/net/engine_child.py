"""The engine's own process: reads requests on its standard input, answers on its output.

Run by net.engine_process as ``python -m multispin.net.engine_child``; messages as in net/child.py.
The first request loads the model. A step never fails by an answer: whatever goes wrong in one ends
the process, which is replaced.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import TypeAlias

import msgspec
import numpy as np

from multispin.core.cost import CostEngine
from multispin.core.engine import Batch, Engine, EngineInfo, StepResult
from multispin.errors import MultispinError
from multispin.net.child import Failed, reply, requests
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


Request: TypeAlias = Load | Step | TokenizeText
Response: TypeAlias = Loaded | Stepped | Tokenized | Failed


def main() -> None:
    # llama.cpp and its neighbours may print: what they print must not mix with the answers.
    asked = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    encoder = msgspec.msgpack.Encoder()
    decoder = msgspec.msgpack.Decoder(Request)
    engine: Engine | CostEngine | None = None
    for data in requests(asked):
        answer: Response
        match decoder.decode(data):
            case Load(options):
                try:
                    engine = load_engine(options)
                    gc.collect()
                    gc.freeze()  # what is here now stays: looking through it again delays a pass
                    answer = Loaded(engine.info)
                except MultispinError as error:
                    answer = Failed.of(error)
            case Step(batch):
                assert engine is not None
                answer = Stepped(engine.step(batch))
            case TokenizeText(text, parse_special):
                assert engine is not None
                try:
                    ids = engine.tokenize(text, parse_special)
                    answer = Tokenized(ids.astype(np.dtype("<i4")).tobytes())
                except MultispinError as error:
                    answer = Failed.of(error)
        reply(answers, encoder.encode(answer))


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, BrokenPipeError):  # the server is gone
        sys.exit(1)
