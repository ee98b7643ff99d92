"""Files of the cache: what counts as verified, and how a download becomes a cached file.

``NAME.gguf`` is the model, ``NAME.gguf.ok`` records the size, modification time and SHA-256 that it
had when it was last hashed, ``NAME.gguf.lock`` serialises pulls, ``NAME.gguf.pull/`` holds partial
downloads. While size and time still match the record, the file is not hashed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import platformdirs

GGUF_MAGIC = b"GGUF"
_HASH_CHUNK = 1 << 22


class _Record(msgspec.Struct, frozen=True):
    num_bytes: int
    mtime_ns: int
    sha256: str


def cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of pulled models: MULTISPIN_CACHE, else the platform's cache folder."""
    chosen = environ.get("MULTISPIN_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(platformdirs.user_cache_dir("multispin", appauthor=False)) / "models"


def staging_dir(file: Path) -> Path:
    return file.with_name(file.name + ".pull")


def lock_path(file: Path) -> Path:
    return file.with_name(file.name + ".lock")


def damage(file: Path, num_bytes: int | None, sha256: str | None) -> str | None:
    """Why ``file`` must not be loaded, or None when it is verified.

    ``num_bytes`` and ``sha256`` are the catalog's; where it has none (hf: files), what was recorded
    when the file was pulled counts.
    """
    try:
        stat = file.stat()
    except OSError:
        return "not there"
    if num_bytes is not None and stat.st_size != num_bytes:
        return f"{stat.st_size} bytes long instead of {num_bytes}"
    record = _read_record(file)
    if sha256 is None:
        if record is None:
            return "without a record of its hash"
        sha256 = record.sha256
    now = _Record(stat.st_size, stat.st_mtime_ns, sha256)
    return None if record == now else _check_hash(file, now)


def _check_hash(file: Path, now: _Record) -> str | None:
    try:
        actual = hash_file(file)
    except OSError as error:
        return f"not readable ({error.strerror})"
    if actual != now.sha256:
        return f"damaged (its sha256 begins {actual[:12]} instead of {now.sha256[:12]})"
    # A cache that we may not write to costs a hash at every load, no more.
    with contextlib.suppress(OSError):
        _write_record(file, now)
    return None


def install(download: Path, file: Path, sha256: str) -> None:
    """Make the verified ``download`` the cached ``file``, atomically and durably.

    The record goes first: a crash in between leaves a record that matches no file, never a file
    that nothing vouches for.
    """
    with download.open("rb+") as data:
        os.fsync(data.fileno())
    stat = download.stat()
    _write_record(file, _Record(stat.st_size, stat.st_mtime_ns, sha256))
    os.replace(download, file)


def remove(file: Path) -> None:
    file.unlink(missing_ok=True)
    _record_path(file).unlink(missing_ok=True)


def is_gguf(file: Path) -> bool:
    with file.open("rb") as data:
        return data.read(len(GGUF_MAGIC)) == GGUF_MAGIC


def hash_file(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as data:
        while chunk := data.read(_HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def folder_bytes(folder: Path) -> int:
    """Bytes under ``folder``, while others may be writing and deleting in it."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(root, name)).st_size
    return total


def _record_path(file: Path) -> Path:
    return file.with_name(file.name + ".ok")


def _read_record(file: Path) -> _Record | None:
    try:
        return msgspec.json.decode(_record_path(file).read_bytes(), type=_Record)
    except (OSError, msgspec.MsgspecError):
        return None


def _write_record(file: Path, record: _Record) -> None:
    path = _record_path(file)
    # The process id keeps two writers of the same record apart.
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_bytes(msgspec.json.encode(record))
    os.replace(temporary, path)
