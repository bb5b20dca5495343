"""Pickles of strangers, read without trusting them: a pickle may name any function, and reading it calls that.

Two readers, each with a list of what may be named; anything else ends the reading before it is called.
"""

import _codecs
import collections
import io
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray, numeric

from tools.convert.model_folder import ModelError, read_bytes

# What either reader raises on bytes that are no pickle.
_MALFORMED = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, IndexError, KeyError, AttributeError
)  # fmt: skip
_NUMPY_MODULES = ("numpy._core", "numpy.core")  # numpy 2 and numpy 1
_CONTAINERS = (set, frozenset, list, dict, tuple, bytearray, complex, slice, range)
_SCALARS = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8")


def _numpy_functions() -> dict[str, Any]:
    """Full name -> what rebuilds arrays and scalars, under numpy 1's and numpy 2's names."""
    allowed: dict[str, Any] = {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype}
    for module in _NUMPY_MODULES:
        allowed[f"{module}.multiarray._reconstruct"] = multiarray._reconstruct
        allowed[f"{module}.multiarray.scalar"] = multiarray.scalar
        allowed[f"{module}.numeric._frombuffer"] = numeric._frombuffer  # type: ignore[attr-defined]
    return allowed


def _plain_names() -> dict[str, Any]:
    allowed = _numpy_functions()
    allowed["collections.OrderedDict"] = collections.OrderedDict
    allowed["_codecs.encode"] = _codecs.encode  # how protocol 2 writes bytes
    for module in ("builtins", "__builtin__"):
        allowed |= {f"{module}.{kind.__name__}": kind for kind in _CONTAINERS}
    allowed |= {f"numpy.{name}": getattr(np, name) for name in _SCALARS}
    return allowed


_PLAIN_NAMES = _plain_names()


class _RefusedError(pickle.UnpicklingError):
    """The pickle names something that is not on the list."""


class _PlainUnpickler(pickle.Unpickler):
    """Containers, numpy arrays and scalars; nothing else is even looked up."""

    def find_class(self, module: str, name: str, /) -> Any:
        """What a name on the list stands for."""
        full = f"{module}.{name}"
        if full not in _PLAIN_NAMES:
            raise _RefusedError(full)
        return _PLAIN_NAMES[full]


def load_plain_pickle(path: Path) -> Any:
    """What a pickle of containers, numbers and numpy arrays holds (nnU-Net v1's plans).

    Raises:
        ModelError: it cannot be read, or names anything else: ``posix.system`` is refused and not called.
    """
    content = read_bytes(path)
    try:
        return _PlainUnpickler(io.BytesIO(content)).load()
    except _RefusedError as error:
        raise _refusal(path, str(error)) from None
    except _MALFORMED as error:
        raise ModelError(f"{path}: not a pickle that can be read ({error}); expected what nnU-Net wrote") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The dictionary in a PyTorch checkpoint, read by ``weights_only`` and the numpy scalars that nnU-Net logs.

    Raises:
        ModelError: it cannot be read, is no dictionary, or names a class beyond tensors and numbers.
    """
    content = read_bytes(path)
    try:
        with torch.serialization.safe_globals(_checkpoint_names()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle protocol other than torch's own: what is refused is not read
            checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except _MALFORMED as error:
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise _refusal(path, found[1]) from None
        raise ModelError(f"{path}: not a checkpoint that can be read; expected what torch.save wrote") from error
    if not isinstance(checkpoint, dict):
        raise ModelError(f"{path}: holds a {type(checkpoint).__name__}; expected nnU-Net's dictionary")
    return checkpoint


def _checkpoint_names() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    kinds = [type(np.dtype(name)) for name in (*_SCALARS, "bool")]
    return [*((value, name) for name, value in _numpy_functions().items()), *kinds]


def _refusal(path: Path, name: str) -> ModelError:
    return ModelError(
        f"{path}: the pickle names {name}, which is not what nnU-Net writes and could run any code; nothing was run. "
        "Only containers, numbers, numpy arrays and tensors are read. Get the model from where you trust it"
    )
