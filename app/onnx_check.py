"""Does an ONNX file hold all that it needs, and nothing but standard operators? Told without loading it.

ONNX is a protobuf. What runs a network would open the files that it names as external data, and would look for
operators of foreign domains in libraries. Both are refused before a runtime sees the file. The walk below follows
every message that can hold a tensor or an operator; weights are stepped over, so the 11 MB of the default bundle cost
a few milliseconds.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from app.errors import BundleError

_STANDARD_DOMAINS = ("", "ai.onnx")
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # protobuf's wire types; groups (3, 4) are not in ONNX
_LONGEST_VARINT = 10
_FIELD_NUMBERS = 2**29
_DEEPEST = 16  # messages within messages; a network needs four
# message -> field number -> what is in it (onnx.proto); a field that is not listed can hold neither tensor nor operator
_MESSAGES = {
    "model": {7: "graph", 8: "domain of a set", 20: "training", 25: "function"},
    "domain of a set": {1: "domain"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute", 7: "domain"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external data", 14: "place"},
}


class _MalformedError(ValueError):
    """The bytes are not a protobuf of ONNX."""


@dataclass(frozen=True)
class _Field:
    """A field of a message: its number and what it holds, a number or the bytes of text or of another message."""

    number: int
    value: int | memoryview


def check_self_contained(content: bytes, source: str) -> None:
    """Raises BundleError unless the network in a file needs no other file and no operator of a foreign domain.

    Args:
        content: of the file.
        source: its name, for the message.
    """
    try:
        problem = next(_problems("model", memoryview(content), 0), None)
    except _MalformedError as error:
        raise BundleError(f"{source}: not ONNX ({error}); expected a network. Convert it again") from error
    if problem:
        raise BundleError(
            f"{source}: {problem}; expected one file with standard operators only. Do not use it unless you know "
            "where it is from; convert the network again"
        )


def _problems(kind: str, content: memoryview, depth: int) -> Iterator[str]:
    """What is wrong with a message and with those in it."""
    if depth > _DEEPEST:
        raise _MalformedError(f"messages within messages deeper than {_DEEPEST}")
    for field in _fields(content):
        found = _MESSAGES[kind].get(field.number)
        if found in _MESSAGES:
            yield from _problems(found, _as_bytes(field), depth + 1)
        elif found is not None and (problem := _JUDGES[found](field)):
            yield problem


def _judge_domain(field: _Field) -> str | None:
    domain = bytes(_as_bytes(field)).decode("utf-8", errors="replace")
    return None if domain in _STANDARD_DOMAINS else f"uses operators of the domain {domain[:80]!r}"


_JUDGES: dict[str, Callable[[_Field], str | None]] = {
    "domain": _judge_domain,
    "external data": lambda _: "keeps weights in another file (external data)",
    "place": lambda field: "keeps weights in another file (external data)" if field.value != 0 else None,
    "function": lambda _: "defines operators of its own (functions)",
    "training": lambda _: "holds a training graph",
}


def _fields(content: memoryview) -> Iterator[_Field]:
    """The fields of a message in their order; raises _MalformedError where it is none."""
    place = 0
    while place < len(content):
        key, place = _varint(content, place)
        number, wire_type = key >> 3, key & 7
        if not 0 < number < _FIELD_NUMBERS:
            raise _MalformedError(f"field number {number}")
        if wire_type == _VARINT:
            value, place = _varint(content, place)
            yield _Field(number, value)
            continue
        if wire_type == _BYTES:
            length, place = _varint(content, place)
        elif wire_type in (_EIGHT_BYTES, _FOUR_BYTES):
            length = 8 if wire_type == _EIGHT_BYTES else 4
        else:
            raise _MalformedError(f"wire type {wire_type}")
        if length > len(content) - place:
            raise _MalformedError("it ends within a field")
        if wire_type == _BYTES:
            yield _Field(number, content[place : place + length])
        place += length


def _varint(content: memoryview, place: int) -> tuple[int, int]:
    """(a number of 7 bits a byte, low ones first; where it ends): 0xAC 0x02 is 300."""
    value = 0
    for index in range(_LONGEST_VARINT):
        if place + index >= len(content):
            raise _MalformedError("it ends within a number")
        byte = content[place + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, place + index + 1
    raise _MalformedError("a number of more than 10 bytes")


def _as_bytes(field: _Field) -> memoryview:
    if isinstance(field.value, int):
        raise _MalformedError(f"field {field.number} is a number")
    return field.value
