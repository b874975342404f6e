"""What is given to `hush data build` as text: noise, names of classes, SRC."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_pipeline.spec import Corruption

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def local_source(text: str) -> Path:
    """SRC as a path; ValueError if it is an address."""
    if match := _ADDRESS.match(text):
        raise ValueError(f"SRC begins with {match[0]}, but must be a local folder; copy the raw data set here first")
    return Path(text)


def parse_corruption(text: str, seed: int) -> Corruption:
    """`pairflip:0.3` -> PairflipCorruption(rate=0.3); `class_dependent:0.1,0.05` -> k=0.1, beta=0.05."""
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415 -- when needed

    from data_pipeline.spec import Corruption  # noqa: PLC0415 -- when needed

    kind, _, levels = text.partition(":")
    names = ("k", "beta") if kind == "class_dependent" else ("rate",)
    values = levels.split(",")
    adapter: TypeAdapter[Corruption] = TypeAdapter(Corruption)
    try:
        if len(values) != len(names):
            raise ValueError("another number of levels")
        return adapter.validate_python({"kind": kind, "seed": seed, **dict(zip(names, values, strict=True))})
    except (ValidationError, ValueError):
        raise ValueError(
            f"--corruption {text!r} must be symmetric:RATE or pairflip:RATE, RATE above 0 and below 1, or"
            " class_dependent:K,BETA, K from 0 and BETA above 0, both below 1"
        ) from None


def class_names(text: str) -> tuple[str, ...]:
    """`digits`, `fashion`, how many there are, the names between commas, or `@` and a file with a name a line."""
    from data_pipeline.sources.mnist import DIGIT_CLASSES, FASHION_CLASSES  # noqa: PLC0415 -- numpy, Pillow

    known = {"digits": DIGIT_CLASSES, "fashion": FASHION_CLASSES}
    if text in known:
        return known[text]
    if text.isdecimal() and len(text) < 6:
        names = tuple(map(str, range(int(text))))
    elif text.startswith("@"):
        names = _lines(text)
    else:
        names = tuple(name.strip() for name in text.split(","))
    if len(names) < 2 or "" in names or len(set(names)) < len(names):
        raise ValueError(
            f"--classes {text!r} must be digits, fashion, a number from 2 up, or at least two different names:"
            " between commas, or a line each in @FILE"
        )
    return names


def _lines(text: str) -> tuple[str, ...]:
    """Of `@FILE`, less empty ones."""
    try:
        lines = Path(text[1:]).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else f"cannot be read ({error.strerror})"
        raise ValueError(f"--classes {text!r}: the file {why}; give one with the name of a class a line") from None
    return tuple(line.strip() for line in lines if line.strip())
