"""Where the voxels of a MetaImage or NRRD file lie: within it, or in other files that its header names.

SimpleITK opens whatever is named: ``../../other/patient.raw``, ``/dev/zero``. Only files of the header's own folder are
let through, so that a scan shows nothing but what came with it.
"""

import mmap
import re
from pathlib import Path

from app.errors import CaseError

_LONGEST_HEADER_BYTES = 2**20
# Both formats' keys, wherever they stand: MetaIO takes several fields in one line, NRRD any case.
_NAMED = re.compile(rb"data ?file[ \t]*[:=]([^\r\n]*)", re.IGNORECASE)
_END = {
    ".mha": re.compile(rb"^[ \t]*ElementDataFile[ \t]*[:=][ \t]*local[ \t]*\r?$", re.IGNORECASE | re.MULTILINE),
    ".nrrd": re.compile(rb"\r?\n\r?\n"),
}
_META_KEY = b"ElementDataFile"
_END |= {".mhd": _END[".mha"], ".nhdr": _END[".nrrd"]}


def check_data_files(path: Path) -> None:
    """Raises CaseError if the header names a file outside its own folder, or has no end within 1 MiB.

    Args:
        path: ends in .mha, .mhd, .nrrd or .nhdr.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        head = stream.read(_LONGEST_HEADER_BYTES + 1)
    end = _END[path.suffix.lower()].search(head)
    if end is None and len(head) > _LONGEST_HEADER_BYTES:
        raise CaseError(f"{path}: its header does not end within {_LONGEST_HEADER_BYTES} bytes. Convert it")
    if end is not None and path.suffix.lower() in (".mha", ".mhd") and _stands_behind(path, _META_KEY, end.end()):
        raise CaseError(f"{path}: says twice where its voxels are. Convert the scan")
    header = head if end is None else head[: end.end()]
    for named in _NAMED.finditer(header):
        listed = header[named.start(1) :] if named[1].strip().upper().startswith(b"LIST") else named[1]
        if b"/" in listed or b"\\" in listed:
            raise CaseError(
                f"{path}: names a file outside its own folder for its voxels; expected one beside it. "
                "Move the file there and change the header, or convert the scan"
            )


def _stands_behind(path: Path, key: bytes, start: int) -> bool:
    """Whether the file has the key after ``start``.

    MetaIO takes the line after an array without numbers (``Offset =``) for that array. If ``ElementDataFile = LOCAL``
    is swallowed so, a later one counts, however far behind. Voxels that spell the key by chance are refused, too.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(key, start) >= 0
