"""JSON values as frozen dataclasses: every key known, every type right, or an error that names the key."""

import types
from dataclasses import MISSING, fields, is_dataclass
from math import isfinite
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def build_value(kind: Any, value: Any, where: str) -> Any:
    """``value`` (from JSON) as ``kind``: a frozen dataclass, or a type hint of the few forms that plans use.

    Args:
        kind: dataclass, Literal, tuple, dict, optional or a scalar type.
        value: what ``json.loads`` gave.
        where: the key's path, for messages.

    Raises:
        ValueError: an unknown or missing key, a wrong type or an impossible value.
    """
    origin = get_origin(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        return _build_dataclass(kind, value, where)
    if origin is Literal:
        if (type(value), value) not in [(type(known), known) for known in get_args(kind)]:
            raise ValueError(f"{where}: found {value!r}, expected one of {', '.join(map(repr, get_args(kind)))}")
        return value
    if origin in (Union, types.UnionType):
        inner = [arg for arg in get_args(kind) if arg is not type(None)]
        return None if value is None else build_value(inner[0], value, where)
    if origin is tuple:
        return _build_tuple(get_args(kind), value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where}: found {value!r}, expected an object")
        return {key: build_value(get_args(kind)[1], item, f"{where}.{key}") for key, item in value.items()}
    return _build_scalar(kind, value, where)


def _build_dataclass(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: found {value!r}, expected an object")
    hints = get_type_hints(kind)
    known = {entry.name for entry in fields(kind)}
    if unknown := sorted(set(value) - known):
        raise ValueError(f"{where}: unknown key {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    arguments = {key: build_value(hints[key], item, f"{where}.{key}") for key, item in value.items()}
    try:
        return kind(**arguments)
    except TypeError:
        needed = {entry.name for entry in fields(kind) if entry.default is MISSING and entry.default_factory is MISSING}
        raise ValueError(f"{where}: missing key {', '.join(sorted(needed - set(arguments)))}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _build_tuple(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{where}: found {value!r}, expected a list")
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(value) != len(kinds):
        raise ValueError(f"{where}: found {len(value)} entries, expected {len(kinds)}")
    pairs = enumerate(zip(kinds, value, strict=True))
    return tuple(build_value(kind, item, f"{where}[{i}]") for i, (kind, item) in pairs)


def _build_scalar(kind: type, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not isfinite(value)):
        raise ValueError(f"{where}: found {value!r}, expected {kind.__name__}")
    return value
