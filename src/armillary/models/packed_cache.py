"""Packed weights on disk: packed once, mapped at every later start.

One file per model, path and format, in `.armillary` in the model's folder, or in the user's cache folder where that
cannot be written. It is written under a temporary name and renamed, so a reader sees a whole file or none; what does
not fit in every particular is ignored and written anew.

A file is a line of magic, the length of a header, a digest of the header, the header (JSON), and from a multiple of
the page size on the packed bytes, as they lie in memory. The header holds the version of this format, a digest of the
checkpoint's content, one of the layout, what the kernels made of a small matrix, and digests of samples of the bytes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from armillary.kernels import native
from armillary.models.packed_weights import PackedLayout, trial
from armillary.models.weights import CheckpointWeights

VERSION = 5
FOLDER = ".armillary"
SUFFIX = ".packed"
LEAST_WEIGHTS = 64_000_000
"""Weights from which on a file is written: fewer are packed in well under a second."""
SPARE_BYTES = 1 << 30
"""Disk space that is left free."""

_MAGIC = b"ARMILLARY-PACKED"
_ALIGNED = 4096
_CHUNK = 64 << 20
_SAMPLES, _SAMPLE_BYTES = 256, 4096
_ABANDONED_S = 24 * 3600

logger = logging.getLogger(__name__)


class PackedCache:
    """The file of one model in one layout.

    Args:
        source: the checkpoint. Its headers and samples of its bytes are read, about a MiB of each file.
    """

    def __init__(self, source: CheckpointWeights, layout: PackedLayout) -> None:
        self._layout = layout
        self._folders = [source.folder / FOLDER, *_user_folder(source.folder)]
        self.name = file_name(layout)
        self._header = {
            "version": VERSION,
            "model": _model_digest(source),
            "layout": _digest(layout.describe().encode()),
            "kernels": _kernels_digest(layout),
            "size": layout.size,
        }

    def open(self) -> native.Bytes | None:
        """The packed weights; None where there is no file that fits in every particular."""
        for folder in self._folders:
            try:
                return _mapped(folder / self.name, self._header)
            except (OSError, ValueError, KeyError, TypeError) as error:
                if not isinstance(error, FileNotFoundError):
                    logger.info("%s is not used and will be written anew: %s", folder / self.name, error)
        return None

    def write(self, memory: native.Bytes) -> Path | None:
        """Write packed weights, and remove files that they replace.

        None, and a line in the log, where no disk takes them: the cache is a convenience."""
        for folder in self._folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._remove_replaced(folder)
                free = shutil.disk_usage(folder).free
                if free < self._layout.size + SPARE_BYTES:
                    logger.info("packed weights are not kept in %s: %d bytes are free there", folder, free)
                    continue
                path = folder / self.name
                _write(path, self._header, memory)
                return path
            except OSError as error:
                logger.info("packed weights are not kept in %s: %s", folder, error)
        return None

    def _remove_replaced(self, folder: Path) -> None:
        """Files of an earlier content of this model or an earlier format, and what a dead writer left."""
        for path in folder.glob(f"*{SUFFIX}"):
            try:
                header = _read_header(path)[0]
            except (OSError, ValueError, KeyError, TypeError):
                header = {}
            if any(header.get(name) != self._header[name] for name in ("version", "model")):
                path.unlink(missing_ok=True)
        for path in folder.glob(f"*{SUFFIX}.partial.*"):
            with contextlib.suppress(FileNotFoundError):  # its writer is done with it
                if time.time() - path.stat().st_mtime > _ABANDONED_S:
                    path.unlink()


def worth_keeping(layout: PackedLayout) -> bool:
    """Whether packing takes long enough for a file."""
    return sum(e.parameter.rows * max(1, e.parameter.width) for e in layout.entries) >= LEAST_WEIGHTS


def file_name(layout: PackedLayout) -> str:
    """A name that tells people what is in a file, so that formats do not push each other out; what a file must fit
    stands in its header."""
    form = next(iter(layout.formats))
    group = f"-g{form.group}" if form.group else ""
    return f"{layout.path}-{form.element}{group}{'-a8' if form.int8_activations else ''}{SUFFIX}"


def _mapped(path: Path, wanted: dict[str, Any]) -> native.Bytes:
    header, start = _read_header(path)
    for name, value in wanted.items():
        if header.get(name) != value:
            raise ValueError(f"its {name} is another")
    size = int(wanted["size"])
    with path.open("rb") as file:
        # Private, because the kernels take memory that could be written to. Nothing writes.
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if len(mapping) != start + size:
        raise ValueError(f"it has {len(mapping)} bytes of {start + size}")
    if hasattr(mmap, "MADV_WILLNEED"):
        mapping.madvise(mmap.MADV_WILLNEED)
    memory = np.frombuffer(mapping, dtype=np.uint8, count=size, offset=start)
    if header.get("samples") != _digest_samples(memory):
        raise ValueError("its bytes are not those that were written")
    return memory


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and where the bytes begin. Raises ValueError where it is damaged or foreign."""
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError("it is no file of packed weights")
        length = int.from_bytes(file.read(8), "little")
        if length > _CHUNK:
            raise ValueError("its header is damaged")
        digest, text = file.read(16), file.read(length)
    if len(text) != length or blake2b(text, digest_size=16).digest() != digest:
        raise ValueError("its header is damaged")
    header = json.loads(text)
    if not isinstance(header, dict):
        raise ValueError("its header is damaged")
    return header, _padded(len(_MAGIC) + 8 + 16 + length)


def _write(path: Path, header: dict[str, Any], memory: native.Bytes) -> None:
    text = json.dumps({**header, "samples": _digest_samples(memory)}).encode()
    head = _MAGIC + len(text).to_bytes(8, "little") + blake2b(text, digest_size=16).digest() + text
    # Two engines of a process, and processes of two containers, may have one number.
    partial = path.with_name(f"{path.name}.partial.{secrets.token_hex(8)}")
    try:
        with partial.open("wb") as file:
            file.write(head.ljust(_padded(len(head)), b"\0"))
            whole = memory.data
            for first in range(0, len(whole), _CHUNK):
                file.write(whole[first : first + _CHUNK])
            file.flush()
            os.fsync(file.fileno())  # else a machine that loses power may keep the name and not the bytes
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _model_digest(source: CheckpointWeights) -> str:
    """Of names, shapes and places of all tensors; of how quantised ones are read, which config.json says; of samples of
    every file's bytes; and of the second in which it was last written, since samples miss a vector or a row of an
    embedding that somebody changed."""
    found = blake2b(repr(source.spec.quantized).encode(), digest_size=16)
    for name, file in source.files.items():
        listed = {key: [t.dtype, t.shape, t.start, t.stop] for key, t in file.tensors.items()}
        with file.path.open("rb") as opened:
            about = os.fstat(opened.fileno())
            found.update(json.dumps([name, listed, int(about.st_mtime)], sort_keys=True).encode())
            for place in _places(about.st_size):
                opened.seek(place)
                found.update(opened.read(_SAMPLE_BYTES))
    return found.hexdigest()


def _kernels_digest(layout: PackedLayout) -> str:
    """Of what this build of the kernels makes of a small matrix in each format: another layout is noticed even where
    nobody thought of raising a version."""
    found = blake2b(digest_size=16)
    kinds = {(entry.form, entry.parameter.paired) for entry in layout.entries if entry.form is not None}
    for form, paired in sorted(kinds, key=str):
        found.update(trial(form, layout.path, paired))
    return found.hexdigest()


def _digest_samples(memory: native.Bytes) -> str:
    whole, found = memory.data, blake2b(digest_size=16)
    for place in _places(len(whole)):
        found.update(whole[place : place + _SAMPLE_BYTES])
    return found.hexdigest()


def _places(size: int) -> Iterator[int]:
    """Evenly spread, the first and the last bytes among them."""
    last = max(0, size - _SAMPLE_BYTES)
    for index in range(_SAMPLES):
        yield last * index // (_SAMPLES - 1)


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()


def _padded(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _user_folder(model: Path) -> list[Path]:
    """A folder for this model in the user's cache; none for a user who has no home, as in some containers."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return []
    return [base / "armillary" / "packed" / _digest(str(model.resolve()).encode())]
