"""What a pickle file says, read without unpickling it.

CIFAR's python form is a pickle of dicts, lists, numbers, strings and one array of bytes. Unpickling may run whatever
code a file names; here nothing is looked up, imported or called. `pickletools` parses the opcodes, which are followed
on a stack of plain values. Of all names that a file can give only those by which NumPy writes an array are understood,
and they stand for an array of bytes that is built here. Any other name or opcode is refused.
"""

from __future__ import annotations

import dataclasses
import math
import pickletools
import struct
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray


class UnexpectedPickleError(ValueError):
    """The file asks for what plain values and arrays of bytes do not need, or it is no whole pickle."""


@dataclasses.dataclass(frozen=True)
class _Name:
    """`module.name` as the file gives it; never looked up."""

    text: str


@dataclasses.dataclass(frozen=True)
class _ElementType:
    """NumPy's name of an array's element type."""

    text: object


@dataclasses.dataclass
class _Array:
    """An array of bytes; None until the file says what is in it."""

    values: NDArray[np.uint8] | None = None


def load_plain(data: bytes) -> dict[str, object]:
    """The dict that the file holds: of numbers, lists, tuples, dicts, uint8 arrays, and str for strings of either kind
    (bytes as latin-1)."""
    machine = _Machine()
    try:
        for opcode, argument, position in pickletools.genops(data):
            if opcode.name not in _STEPS:
                raise UnexpectedPickleError(f"asks for {opcode.name} at byte {position}; plain values do not need that")
            _STEPS[opcode.name](machine, argument)
        value = machine.stack.pop()
    except UnexpectedPickleError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error) as error:
        raise UnexpectedPickleError(f"is no whole pickle of plain values: {error}") from None
    if not isinstance(value, dict):
        raise UnexpectedPickleError("holds no dict")
    return {str(key): entry.values if isinstance(entry, _Array) else entry for key, entry in value.items()}


class _Machine:
    """A stack of plain values, the stacks below its marks, and what the file has asked to remember."""

    def __init__(self) -> None:
        self.stack: list[object] = []
        self._below_marks: list[list[object]] = []
        self._memo: dict[object, object] = {}

    def push(self, argument: object) -> None:
        self.stack.append(argument)

    def push_bytes(self, argument: object) -> None:
        assert isinstance(argument, bytes | bytearray)
        self.stack.append(argument.decode("latin-1"))

    def remember(self, argument: object) -> None:
        self._memo[len(self._memo) if argument is None else argument] = self.stack[-1]

    def recall(self, argument: object) -> None:
        self.stack.append(self._memo[argument])

    def mark(self, _argument: object) -> None:
        self._below_marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[object]:
        values, self.stack = self.stack, self._below_marks.pop()
        return values

    def take(self, count: int) -> list[object]:
        """The `count` topmost values, off the stack."""
        if count > len(self.stack):
            raise IndexError("the stack is empty")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def extend(self, values: list[object]) -> None:
        """Into the list on top."""
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError("appends to what is no list")
        target.extend(values)

    def update(self, values: list[object]) -> None:
        """Into the dict on top: key, value, key, value."""
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise TypeError("sets an item of what is no dict")
        target.update(_pairs(values))

    def name(self, argument: object) -> None:
        """A name in the file (`module name`) or on the stack (module, then name)."""
        parts = str(argument).split(" ", 1) if argument is not None else self.take(2)
        text = ".".join(map(str, parts)).replace("numpy._core.", "numpy.core.")
        if text not in _NAMES:
            raise UnexpectedPickleError(f"asks for {text!r}, which is neither a plain value nor an array of bytes")
        self.stack.append(_Name(text))

    def call(self, _argument: object) -> None:
        called, arguments = self.take(2)
        if not isinstance(called, _Name) or not isinstance(arguments, tuple):
            raise TypeError("calls what is no name")
        self.stack.append(_stand_in(called, arguments))

    def build(self, _argument: object) -> None:
        (state,) = self.take(1)
        target = self.stack[-1]
        if isinstance(target, _Array) and isinstance(state, tuple):
            _version, shape, element_type, is_fortran, data = state
            if is_fortran:
                raise UnexpectedPickleError("holds an array in Fortran's order")
            target.values = _array_of_bytes(data, shape, element_type)
        elif not isinstance(target, _ElementType):
            raise TypeError("sets the state of what is no array")


_NAMES = frozenset(
    {
        "numpy.core.multiarray._reconstruct",
        "numpy.core.numeric._frombuffer",
        "numpy.dtype",
        "numpy.ndarray",
        "_codecs.encode",
    }
)


def _stand_in(called: _Name, arguments: tuple[object, ...]) -> object:
    """What a call by one of these names stands for."""
    match called.text:
        case "numpy.core.multiarray._reconstruct":
            return _Array()
        case "numpy.core.numeric._frombuffer":
            data, element_type, shape, order = arguments
            if order != "C":
                raise UnexpectedPickleError(f"holds an array in the order {order!r}")
            return _Array(_array_of_bytes(data, shape, element_type))
        case "numpy.dtype":
            return _ElementType(arguments[0])
        case "_codecs.encode":  # how Python 3 writes bytes for Python 2
            return arguments[0]
        case other:
            raise TypeError(f"calls {other}")


def _array_of_bytes(data: object, shape: object, element_type: object) -> NDArray[np.uint8]:
    if not isinstance(element_type, _ElementType) or element_type.text not in {"u1", "uint8"}:
        raise UnexpectedPickleError(f"holds an array of {getattr(element_type, 'text', element_type)!r}, not of bytes")
    if not isinstance(data, str) or not isinstance(shape, tuple):
        raise TypeError("an array without bytes or shape")
    sides = [side for side in shape if isinstance(side, int) and side >= 0]
    if len(sides) != len(shape) or math.prod(sides) != len(data):
        raise UnexpectedPickleError(f"holds an array of {len(data)} bytes whose shape does not fit")
    return np.frombuffer(data.encode("latin-1"), dtype=np.uint8).reshape(sides)


def _pairs(values: Sequence[object]) -> dict[object, object]:
    if not all(isinstance(key, str | int) for key in values[::2]):  # tuples in tuples may take for ever to hash
        raise TypeError("a key is neither text nor number")
    return dict(zip(values[::2], values[1::2], strict=True))


_Step = Callable[[_Machine, object], None]

_STEPS: dict[str, _Step] = {
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"), _Machine.push),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _Machine.push),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _Machine.push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), _Machine.push_bytes),
    "NONE": _Machine.push,
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "MARK": _Machine.mark,
    "LIST": lambda machine, _: machine.push(machine.since_mark()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "DICT": lambda machine, _: machine.push(_pairs(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.take(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.take(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.take(3))),
    "APPEND": lambda machine, _: machine.extend(machine.take(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.update(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.since_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.recall),
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL"), _Machine.name),
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda _machine, _: None),
}
