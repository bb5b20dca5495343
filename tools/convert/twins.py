"""Giving a bundle a second network, whose label map the app compares with the first one's (``--uncertainty``)."""

import json
from pathlib import Path

from app.bundle import (
    CARD_FILE,
    HALF_ONNX_FILE,
    ONNX_FILE,
    PLAN_FILE,
    SAFETENSORS_FILE,
    TWIN_FOLDER,
    check_twin,
    load_bundle,
)
from app.errors import UsageError
from tools.convert.bundles import put_part

_COPIED = (ONNX_FILE, HALF_ONNX_FILE, SAFETENSORS_FILE, CARD_FILE)


def add_twin(folder: Path, source: Path) -> None:
    """Copies a bundle into another one as its twin, in place of one that is there.

    Its plan must be the other's but for the name and the shortcuts, which are left out: a twin sees what the network
    sees. Two folds of one nnU-Net model are such a pair, and so are two exports of one training.

    Raises:
        BundleError: one of them is altered, or they are no pair.
        UsageError: both are the same bundle.
    """
    first, second = load_bundle(folder), load_bundle(source)
    if first.read(ONNX_FILE) == second.read(ONNX_FILE):
        raise UsageError(f"{source}: the same network as in {folder}; expected another one, they would always agree")
    check_twin(second, folder, first.plan)
    plan = json.loads(second.read(PLAN_FILE))
    plan.pop("shortcuts", None)
    files = {name: second.read(name) for name in _COPIED if name in second.sha256}
    files[PLAN_FILE] = (json.dumps(plan, indent=1) + "\n").encode()
    put_part(folder, TWIN_FOLDER, files)
