"""A Ray of one machine that `cluster up` starts and `cluster down` stops.

It has a folder and a token of its own, so that it is no other's, and no other is taken for it.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from multispin.cluster import folder as files
from multispin.cluster.process import Process, end_all, environment, start
from multispin.errors import PeerError

START_S = 60.0  # on a machine that is busy
STOP_S = 40.0  # Ray gives what runs in it 30
OBJECTS_BYTES = 80_000_000  # the least that Ray takes; we keep nothing in its store
FILE = "ray.json"
_LIVES_AT = "ray_current_cluster"  # where Ray writes its address, in its folder


class LocalRay(msgspec.Struct, frozen=True):
    process: Process
    address: str
    folder: str  # of Ray: under /tmp, as paths of sockets must be short


def token_path(folder: Path) -> Path:
    return folder / "ray.token"


def token_variables(path: str) -> dict[str, str]:
    """By which Ray finds its token, and insists on it."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": path}


def running(folder: Path) -> LocalRay | None:
    """The one that was started for this cluster, if it lives."""
    known = files.read(folder / FILE, LocalRay)
    return known if known is not None and known.process.lives else None


def start_ray(folder: Path) -> LocalRay:
    """Raise PeerError, with what Ray said, if it does not come up."""
    token = token_path(folder)
    if not token.exists():
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
    place = Path(tempfile.mkdtemp(prefix="multispin-ray-"))
    log = folder / "ray.log"
    log.unlink(missing_ok=True)
    process = start(_command(place), folder / "ray.out", log, _environment(token))
    ray = LocalRay(process, "", str(place))
    files.write(folder / FILE, ray)
    end = time.monotonic() + START_S
    while not ray.address:
        if not process.lives or time.monotonic() > end:
            stop_ray(folder)
            raise PeerError(f"a local Ray does not come up: {_last_line(folder)}")
        time.sleep(0.1)
        with contextlib.suppress(OSError):
            ray = LocalRay(process, (place / _LIVES_AT).read_text().strip(), str(place))
    files.write(folder / FILE, ray)
    return ray


def stop_ray(folder: Path) -> None:
    """The one that was started for this cluster, with all that it started; no other."""
    known = files.read(folder / FILE, LocalRay)
    if known is None:
        return
    end_all([known.process], STOP_S)
    shutil.rmtree(known.folder, ignore_errors=True)
    (folder / FILE).unlink(missing_ok=True)


def _command(place: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=0"),
        *("--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={place}"),
        f"--object-store-memory={OBJECTS_BYTES}",
    ]


def _environment(token: Path) -> dict[str, str]:
    return {**environment(), **token_variables(str(token)), "RAY_USAGE_STATS_ENABLED": "0"}


def _last_line(folder: Path) -> str:
    said = (folder / "ray.log").read_text() + (folder / "ray.out").read_text()
    lines = said.strip().splitlines()
    return lines[-1] if lines else "it said nothing"
