"""The lock files and what asks for vulnerabilities in them."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCKS = {extra: (ROOT / f"requirements-{extra}.lock").read_text() for extra in ("demo", "dev")}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HASHES = r" \\\n    --hash=sha256:[0-9a-f]{64}"
ENTRY = re.compile(rf"^([\w.-]+)==(\S+)(?: ; [^\\\n]+)?((?:{HASHES})+)$", re.MULTILINE)


def asked_for(extra: str) -> list[Requirement]:
    """What pyproject.toml lists for it, and what builds the package."""
    extras = PROJECT["project"]["optional-dependencies"]
    texts = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
    for text in extras[extra]:
        own = re.fullmatch(r"multispin\[(.+)\]", text)
        texts += [t for e in own[1].split(",") for t in extras[e]] if own else [text]
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize("extra", LOCKS)
def test_the_lock_has_everything_with_hashes(extra: str) -> None:
    entries = list(ENTRY.finditer(LOCKS[extra]))
    assert "".join(f"{entry[0]}\n" for entry in entries) == LOCKS[extra]
    versions: dict[str, list[str]] = {}
    for entry in entries:
        versions.setdefault(canonicalize_name(entry[1]), []).append(entry[2])
    for requirement in asked_for(extra):
        locked = versions.get(canonicalize_name(requirement.name))
        assert locked is not None, f"{requirement.name}: run scripts/lock.sh"
        assert all(requirement.specifier.contains(version) for version in locked), requirement


def test_both_locks_name_the_same_versions() -> None:
    """`make test` makes do with the .venv of `make demo`, and the other way round."""
    demo, dev = ({entry.groups() for entry in ENTRY.finditer(text)} for text in LOCKS.values())
    assert demo <= dev


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "scripts" / "audit.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SOUND = {"name": "a", "version": "1", "vulns": []}
BROKEN = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
UNKNOWN = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "lines", "is_bad"),
    [
        ([], ["audit SKIPPED: the service cannot be reached (no route)"], False),
        ([SOUND], ["audit: 1 packages looked up, 0 vulnerable"], False),
        (
            [SOUND, BROKEN],
            ["b 2: CVE-1, fixed in 3", "audit: 2 packages looked up, 1 vulnerable"],
            True,
        ),
        (
            [UNKNOWN, SOUND],
            [
                "audit SKIPPED for 1 of 2 packages: c",
                "audit: 1 packages looked up, 0 vulnerable",
            ],
            False,
        ),
    ],
)
def test_an_audit_says_what_it_did_not_see(
    audit: ModuleType, packages: list[dict[str, object]], lines: list[str], is_bad: bool
) -> None:
    assert audit.judge(packages, "no route") == (lines, is_bad)


def test_ci_audits() -> None:
    assert "make audit" in (ROOT / ".ci" / "run").read_text()
