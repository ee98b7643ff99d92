"""A GGUF file with 8-bit weights out of one with fewer: for measurements of speed only.

    python benchmarks/requantise.py SOURCE.gguf TARGET.gguf

Weights that were rounded to 4 bits are rounded once more: the texts are not those of the model at
8 bits, but a pass takes as long. Needs llama-cpp-python (`make native`): the prebuilt library does
not export llama.cpp's quantiser.
"""

from __future__ import annotations

import sys

import llama_cpp

Q8_0 = 7  # llama_ftype of llama.h


def main() -> None:
    if len(sys.argv) != 3:
        print(__doc__)
        sys.exit(2)
    source, target = sys.argv[1:]
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = Q8_0
    params.allow_requantize = True
    code = llama_cpp.llama_model_quantize(source.encode(), target.encode(), params)
    if code != 0:
        sys.exit(f"llama.cpp cannot requantise {source}: code {code}")


if __name__ == "__main__":
    main()
