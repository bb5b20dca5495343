"""Writing a bundle, all files and their hashes."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from app.bundle import (
    BUNDLE_FILES,
    CARD_FILE,
    HALF_ONNX_FILE,
    HASH_FILE,
    LOCATOR_FOLDER,
    ONNX_FILE,
    PLAN_FILE,
    SAFETENSORS_FILE,
    TWIN_FOLDER,
    Bundle,
    check_locator,
    load_bundle,
    read_hashes,
    read_verified,
    write_hashes,
)
from app.errors import BundleError, FolderError, UsageError
from app.onnx_check import check_self_contained
from app.plan import Crop, Plan, PostprocessingPlan, ShortcutPlan, parse_plan
from tools.convert.architectures import Architecture, export_onnx, restore
from tools.convert.half_precision import to_half_precision
from tools.convert.onnx_graph import Weights, build_onnx

_ARCHITECTURE = "architecture"  # key in the metadata of network.safetensors


def write_bundle(
    folder: Path,
    plan: Plan,
    weights: Weights,
    model_card: str,
    half: bool = True,
    architecture: Architecture | None = None,
) -> None:
    """Writes plan, weights (safetensors), ONNX, model card and hashes; nothing if one of them cannot be made.

    In place of a bundle that is there, whose locator and twin go with it: they belonged to another network.

    Args:
        half: rounds the weights to float16, which halves the files; both files hold the same rounded values.
        architecture: of a network that the plan does not describe; goes into the metadata of the safetensors.

    Raises:
        FolderError: the folder holds something else.
        BundleError: the plan cannot be read back (a NaN in it).
        ValueError: the weights are not those of the network.
    """
    kind = np.float16 if half else np.float32
    # Contiguous, since safetensors writes memory as it lies: channels-last weights of a training would be scrambled.
    rounded = {name: np.ascontiguousarray(value, dtype=kind) for name, value in weights.items()}
    metadata = None if architecture is None else {_ARCHITECTURE: architecture.to_json()}
    onnx = build_onnx(plan, rounded) if metadata is None else _exported(plan, rounded, metadata[_ARCHITECTURE])
    networks = _networks(onnx, folder)
    plan_text = json.dumps(asdict(plan), indent=1) + "\n"
    parse_plan(plan_text, f"{folder / PLAN_FILE} (not written)")  # what nobody can read is not written
    check_is_for_a_bundle(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for part in (LOCATOR_FOLDER, TWIN_FOLDER):
        if (folder / part / HASH_FILE).exists():
            shutil.rmtree(folder / part)
    (folder / PLAN_FILE).write_text(plan_text)
    (folder / SAFETENSORS_FILE).write_bytes(save(rounded, metadata))
    _write_networks(folder, networks)
    (folder / CARD_FILE).write_text(model_card)
    write_hashes(folder)


def check_is_for_a_bundle(folder: Path) -> None:
    """Raises FolderError if the folder holds what is not a bundle's: the app would refuse the mixture."""
    known = (HASH_FILE, LOCATOR_FOLDER, TWIN_FOLDER, *BUNDLE_FILES)
    strangers = [path.name for path in folder.glob("*") if path.name not in known]
    if strangers:
        raise FolderError(f"{folder}: holds {', '.join(sorted(strangers)[:4])}; expected a new folder or a bundle's")


def loses_nothing_as_half(weights: Weights) -> bool:
    """Whether every weight is a float16 already (a network that was stored as such)."""
    with np.errstate(over="ignore"):
        return all(np.array_equal(value.astype(np.float16).astype(np.float32), value) for value in weights.values())


def rebuild_onnx(folder: Path) -> None:
    """Writes both ONNX files of a bundle, and of the bundles in it, anew from the safetensors, and the hashes.

    Raises:
        BundleError: the bundle is altered or its weights do not fit its plan.
    """
    bundle = load_bundle(folder)
    for part in (bundle.locator, bundle.twin):
        if part is not None:
            rebuild_onnx(part.folder)
    weights = load(bundle.read(SAFETENSORS_FILE))
    try:
        if bundle.plan.network.described_by == "onnx":
            content = _exported(bundle.plan, weights, stored_architecture(bundle))
        else:
            content = build_onnx(bundle.plan, weights)
    except ValueError as error:
        raise BundleError(
            f"{folder / SAFETENSORS_FILE}: {error}; expected the weights of the plan's network"
        ) from error
    _write_networks(folder, _networks(content, folder))
    write_hashes(folder)


def set_shortcuts(
    folder: Path,
    crop: Crop | None = None,
    margin_mm: float | None = None,
    least_ml: float | None = None,
    skip_air: bool | None = None,
    locator: Path | None = None,
) -> ShortcutPlan:
    """Changes the shortcuts of a bundle and gives it a locator (a bundle of its own, which is copied); returns them.

    Raises:
        BundleError: one of the bundles is altered, there is no locator to crop to the organs with, or this one does
            not go with the bundle.
        UsageError: shortcuts that cannot be, at all or with this bundle.
    """
    bundle = load_bundle(folder)
    given = {"crop": crop, "margin_mm": margin_mm, "least_ml": least_ml, "skip_air": skip_air}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    try:
        shortcuts = replace(bundle.plan.shortcuts, **changes)
        replace(bundle.plan, shortcuts=shortcuts)
    except ValueError as error:
        raise UsageError(f"{folder / PLAN_FILE}: {error}") from error
    if shortcuts.crop == "organs" and locator is None and bundle.locator is None:
        raise BundleError(f"{folder}: no locator to find the organs with; give --locator a bundle")
    if locator is not None:
        source = load_bundle(locator)
        check_locator(source, folder, bundle.plan)
        if source.locator or source.twin:
            raise BundleError(f"{locator}: has a locator or a twin of its own; expected a network alone")
        put_part(folder, LOCATOR_FOLDER, {name: source.read(name) for name in source.sha256})
    change_plan(folder, shortcuts=shortcuts)
    return shortcuts


def put_part(folder: Path, part: str, files: dict[str, bytes]) -> None:
    """Writes the files of a bundle within a bundle, in place of one that is there, and the hashes of both.

    Raises:
        FolderError: they cannot be written; the old ones stay.
    """
    target, unfinished = folder / part, folder / f".{part}.partial"
    try:
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir()
        for name, content in files.items():
            (unfinished / name).write_bytes(content)
        write_hashes(unfinished)
        if target.exists():
            shutil.rmtree(target)
        unfinished.rename(target)
        write_hashes(folder)
    except OSError as error:
        raise FolderError(f"{target}: cannot be written ({error.strerror or error}); free space") from error


def renew_hashes(folder: Path) -> None:
    """Writes ``SHA256SUMS`` anew after somebody edited plans or model cards, of locator and twin too.

    Raises:
        BundleError: no bundle, an edited plan that is none, or a network that is not the one that was hashed.
    """
    if not (folder / HASH_FILE).is_file():
        raise BundleError(f"{folder}: no {HASH_FILE}; expected a bundle")
    for part in (folder / LOCATOR_FOLDER, folder / TWIN_FOLDER, folder):
        if part.is_dir():
            _check_networks(part)
            write_hashes(part)
    load_bundle(folder)


def _check_networks(folder: Path) -> None:
    """Raises BundleError where a file that nobody edits by hand is not as it was hashed."""
    hashes = read_hashes(folder)
    for name in hashes:
        if name.endswith((".onnx", ".safetensors")):
            read_verified(folder, name, hashes)


def change_plan(folder: Path, **sections: ShortcutPlan | PostprocessingPlan) -> None:
    """Replaces sections of a bundle's ``plan.json`` and writes the hashes.

    Raises:
        BundleError: the plan would not be one; it stays as it is.
    """
    plan = json.loads((folder / PLAN_FILE).read_text())
    plan |= {name: asdict(section) for name, section in sections.items()}
    text = json.dumps(plan, indent=1) + "\n"
    parse_plan(text, f"{folder / PLAN_FILE} (not written)")
    (folder / PLAN_FILE).write_text(text)
    write_hashes(folder)
    load_bundle(folder)


def stored_architecture(bundle: Bundle) -> str:
    """The network in the metadata of ``network.safetensors``, as ``Architecture.to_json`` wrote it.

    Raises:
        BundleError: there is none.
    """
    content = bundle.read(SAFETENSORS_FILE)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])  # the format's first field
    found = header.get("__metadata__", {}).get(_ARCHITECTURE)
    if found is None:
        raise BundleError(f"{bundle.folder / SAFETENSORS_FILE}: does not say which network it is; import it anew")
    return str(found)


def _networks(content: bytes, folder: Path) -> dict[str, bytes]:
    """The network by the names of its files: itself, and once more in half precision if its weights allow that."""
    half = to_half_precision(content)
    found = {ONNX_FILE: content} if half is None else {ONNX_FILE: content, HALF_ONNX_FILE: half}
    for name, network in found.items():
        check_self_contained(network, str(folder / name))
    return found


def _write_networks(folder: Path, networks: dict[str, bytes]) -> None:
    (folder / HALF_ONNX_FILE).unlink(missing_ok=True)
    for name, content in networks.items():
        (folder / name).write_bytes(content)


def _exported(plan: Plan, weights: Weights, architecture_json: str) -> bytes:
    half = all(value.dtype == np.float16 for value in weights.values())
    return export_onnx(restore(architecture_json, plan.classes, weights), plan, half)
