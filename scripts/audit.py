"""Ask pip-audit for known vulnerabilities in the packages of requirements-dev.lock.

Exit code 1 if there are any. What could not be looked up, for want of network or because the
service does not know it, is said: silence must not pass for safety.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCK = Path(__file__).parents[1] / "requirements-dev.lock"
TIMEOUT_S = 300.0


def ask() -> tuple[list[dict[str, Any]], str]:
    """A report for each package, none without an answer; and pip-audit's own words."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK)]
    options = ["--disable-pip", "--require-hashes", "--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run(
            [*command, *options], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return [], f"no answer within {TIMEOUT_S:g} s"
    words = done.stderr.strip().splitlines() or ["no reason given"]
    try:
        return json.loads(done.stdout)["dependencies"], words[-1]
    except (ValueError, KeyError):
        return [], words[-1]


def judge(packages: list[dict[str, Any]], words: str) -> tuple[list[str], bool]:
    """Lines for a person, and whether a vulnerability was found."""
    if not packages:
        return [f"audit SKIPPED: the service cannot be reached ({words})"], False
    found = [package for package in packages if package.get("vulns")]
    lines = [
        f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in "
        + (", ".join(vulnerability["fix_versions"]) or "no version yet")
        for package in found
        for vulnerability in package["vulns"]
    ]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if unknown:
        some = ", ".join(unknown[:3]) + (", …" if len(unknown) > 3 else "")
        lines.append(f"audit SKIPPED for {len(unknown)} of {len(packages)} packages: {some}")
    num_known = len(packages) - len(unknown)
    lines.append(f"audit: {num_known} packages looked up, {len(found)} vulnerable")
    return lines, bool(found)


def main() -> int:
    lines, is_bad = judge(*ask())
    print("\n".join(lines))
    return int(is_bad)


if __name__ == "__main__":
    sys.exit(main())
