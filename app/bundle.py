"""A bundle: the folder with a trained network, its plan and the hashes of both."""

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

from app.errors import BundleError
from app.onnx_check import check_self_contained
from app.plan import Plan, parse_plan

HASH_FILE = "SHA256SUMS"
PLAN_FILE = "plan.json"
ONNX_FILE = "network.onnx"
HALF_ONNX_FILE = "network-fp16.onnx"  # optional: the same network, calculated in half precision on a GPU
SAFETENSORS_FILE = "network.safetensors"
CARD_FILE = "MODEL_CARD.md"
LOCATOR_FOLDER = "locator"
TWIN_FOLDER = "twin"
_LOCATOR_HASHES = f"{LOCATOR_FOLDER}/{HASH_FILE}"
_TWIN_HASHES = f"{TWIN_FOLDER}/{HASH_FILE}"
BUNDLE_FILES = (
    PLAN_FILE, ONNX_FILE, HALF_ONNX_FILE, SAFETENSORS_FILE, CARD_FILE, _LOCATOR_HASHES, _TWIN_HASHES,
)  # fmt: skip


@dataclass(frozen=True)
class Bundle:
    """A bundle whose plan has been read.

    Attributes:
        folder: where it lies.
        plan: its constants.
        sha256: file name -> expected hash.
        locator: the bundle within it that finds the organs; None if it has none.
        twin: the bundle within it of a second network of the same kind, the CPS sibling; None if it has none.
    """

    folder: Path
    plan: Plan
    sha256: dict[str, str]
    locator: "Bundle | None" = None
    twin: "Bundle | None" = None

    def read(self, name: str) -> bytes:
        """The content of a file of the bundle; what is returned is what was hashed.

        Raises:
            BundleError: missing, not listed, or altered; a network that needs other files or foreign operators.
        """
        content = read_verified(self.folder, name, self.sha256)
        if name.endswith(".onnx"):
            check_self_contained(content, str(self.folder / name))
        return content


def load_bundle(folder: Path) -> Bundle:
    """The bundle in a folder, its plan verified and parsed.

    Raises:
        BundleError: the folder or a file is missing, altered, or foreign to a bundle.
    """
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such bundle; expected a folder with {', '.join((HASH_FILE, *BUNDLE_FILES))}")
    hashes = read_hashes(folder)
    known = {HASH_FILE, *(name.partition("/")[0] for name in hashes)}
    strangers = sorted(
        path.name for path in folder.iterdir() if path.name not in known and not path.name.startswith(".")
    )
    if strangers:
        raise BundleError(f"{folder}: {', '.join(strangers)} is not listed in {HASH_FILE}; a bundle holds nothing else")
    plan = parse_plan(
        read_verified(folder, PLAN_FILE, hashes).decode("utf-8", errors="replace"), str(folder / PLAN_FILE)
    )
    locator, twin = _load_locator(folder, plan, hashes), _load_twin(folder, plan, hashes)
    return Bundle(folder=folder, plan=plan, sha256=hashes, locator=locator, twin=twin)


def check_twin(twin: Bundle, folder: Path, plan: Plan) -> None:
    """Raises BundleError unless the twin's plan is that of the bundle in ``folder`` but for name and shortcuts.

    So it sees what the network sees, and one preprocessing serves both.
    """
    keys = [key.name for key in fields(Plan) if key.name not in ("name", "shortcuts")]
    different = [key for key in keys if getattr(twin.plan, key) != getattr(plan, key)]
    if different:
        raise BundleError(
            f"{twin.folder / PLAN_FILE}: {', '.join(different)} not as in {folder / PLAN_FILE}; expected a plan that "
            "differs in nothing but its name and shortcuts"
        )


def check_locator(locator: Bundle, folder: Path, plan: Plan) -> None:
    """Raises BundleError unless the locator sees scans turned as the bundle in ``folder`` does, and whole."""
    if locator.plan.orientation != plan.orientation or not locator.plan.can_be_cropped:
        raise BundleError(
            f"{locator.folder / PLAN_FILE}: expected the orientation of {folder / PLAN_FILE}, crop_to_nonzero false "
            "and transpose_forward [0, 1, 2]"
        )


def write_hashes(folder: Path) -> None:
    """Writes ``SHA256SUMS`` (the format of ``sha256sum``) for the files of a bundle."""
    lines = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in sorted(BUNDLE_FILES)
        if (folder / name).exists()
    ]
    (folder / HASH_FILE).write_text("".join(lines))


def _load_locator(folder: Path, plan: Plan, hashes: dict[str, str]) -> Bundle | None:
    if _LOCATOR_HASHES not in hashes:
        if plan.shortcuts.crop == "organs":
            raise BundleError(f"{folder / PLAN_FILE}: shortcuts.crop is organs, but there is no {_LOCATOR_HASHES}")
        return None
    read_verified(folder, _LOCATOR_HASHES, hashes)
    locator = load_bundle(folder / LOCATOR_FOLDER)
    check_locator(locator, folder, plan)
    return locator


def _load_twin(folder: Path, plan: Plan, hashes: dict[str, str]) -> Bundle | None:
    if _TWIN_HASHES not in hashes:
        return None
    read_verified(folder, _TWIN_HASHES, hashes)
    twin = load_bundle(folder / TWIN_FOLDER)
    check_twin(twin, folder, plan)
    return twin


def read_hashes(folder: Path) -> dict[str, str]:
    """Name: SHA-256 of the files that a bundle lists; BundleError if its list is missing or foreign to a bundle."""
    path = folder / HASH_FILE
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: cannot be read ({error}); expected the hashes of the bundle's files") from error
    hashes = {}
    for line in text.splitlines():
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or name not in BUNDLE_FILES:
            raise BundleError(f"{path}: line {line!r}; expected '<sha256>  <one of {', '.join(BUNDLE_FILES)}>'")
        hashes[name] = digest
    return hashes


def read_verified(folder: Path, name: str, hashes: dict[str, str]) -> bytes:
    """The content of a listed file; BundleError if it is missing, not listed or altered."""
    path = folder / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror or error}); the bundle is incomplete") from error
    if name not in hashes:
        raise BundleError(f"{path}: not listed in {HASH_FILE}; it cannot be verified")
    found = hashlib.sha256(content).hexdigest()
    if found != hashes[name]:
        raise BundleError(f"{path}: SHA-256 {found}, expected {hashes[name]}; the file was altered or is incomplete")
    return content
