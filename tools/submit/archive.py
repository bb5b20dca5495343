"""The archive that is sent in: ``docker image save`` through gzip, with its SHA-256 beside it."""

import hashlib
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from isal import igzip

from app.atomic_files import atomic_file, write_text
from app.errors import DeviceError
from tools.profile.container import inspect_image
from tools.submit.image_checks import Image

_CHUNK_BYTES = 2**20
_LEVEL = 3  # the cpu image, 1011 MB: 490 MB in 4 s of CPU; `gzip -6` 464 MB in 32 s


@dataclass(frozen=True)
class Archive:
    """What was written.

    Attributes:
        name: of the file.
        size_bytes: compressed.
        sha256: as hexadecimal digits.
    """

    name: str
    size_bytes: int
    sha256: str


class _Hashed:
    """Passes bytes on to a stream, counts and hashes them."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._sha256 = stream, hashlib.sha256()
        self.size_bytes = 0

    def write(self, content: bytes) -> int:
        self._sha256.update(content)
        self.size_bytes += len(content)
        return self._stream.write(content)

    @property
    def digest(self) -> str:
        return self._sha256.hexdigest()


def write_archive(image: Image, path: Path) -> Archive:
    """Writes ``path`` and, for ``sha256sum -c``, ``path`` with ``.sha256`` behind it: both or none.

    Raises:
        DeviceError: Docker ended with an error, or the tag means another image by now.
        FolderError: the disk is full.
    """
    note = path.with_name(f"{path.name}.sha256")
    try:
        with atomic_file(path) as stream:
            hashed = _Hashed(stream)
            with igzip.IGzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=hashed, mtime=0) as packed:
                _save(image, packed, path.name)
            if inspect_image(image.name, "{{.Id}}") != image.identity:
                raise DeviceError(f"{image.name}: was built anew while it was being checked; check it again")
        write_text(note, f"{hashed.digest}  {path.name}\n")
    except BaseException:
        for written in (path, note):
            with suppress(OSError):  # it tells nothing that the error in flight does not
                written.unlink()
        raise
    return Archive(path.name, hashed.size_bytes, hashed.digest)


def _save(image: Image, packed: IO[bytes], title: str) -> None:
    """Copies what Docker saves, with a line of progress on a terminal."""
    from tqdm import tqdm

    command = ["docker", "image", "save", image.name]
    with (
        tempfile.TemporaryFile() as said,
        tqdm(total=image.size_bytes, unit="B", unit_scale=True, desc=title, disable=None) as bar,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said) as process,
    ):
        assert process.stdout is not None
        try:
            while chunk := process.stdout.read(_CHUNK_BYTES):
                packed.write(chunk)
                bar.update(len(chunk))
        except BaseException:  # a full disk, Ctrl-C: Docker would wait for a reader
            process.kill()
            raise
        if process.wait():
            said.seek(0)
            text = said.read().decode(errors="replace").strip() or f"exit code {process.returncode}"
            raise DeviceError(f"{' '.join(command)}: {text.splitlines()[-1]}; no archive was written")
