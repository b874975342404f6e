"""What a raw data set looks like to `build`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class SourceExample:
    """One image with its labels, its bytes not yet read."""

    example_id: str
    """Stable and unique in the data set; letters, digits and `-_,+=@`: a file name in the shards and part of URLs."""
    key: str
    """Where the source finds the bytes."""
    suffix: str
    """Of the image file, in small letters without dot: `jpg`, `png`."""
    split: SplitName
    given_label: int | None
    """None: the source has none for it; a build lists it as skipped."""
    clean_label: int | None
    """None: unknown."""
    file: str | None = None
    """Its path in the raw data set, for people (example_ids.readable); None: the picture is no file of its own."""


class Source(Protocol):
    """A raw data set. `examples` comes in a fixed order: "data-set order".

    Picklable: a build reads by copies of it in other processes. A copy knows `name` and `classes` and can `read`; it
    need not list examples.
    """

    @property
    def name(self) -> str:
        """Of the data set."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in label order."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of how the examples were chosen, a line each."""
        ...

    def examples(self) -> Iterable[SourceExample]:
        """All examples, in the same order every time."""
        ...

    def read(self, example: SourceExample) -> bytes:
        """Its image file, untouched; OSError if it cannot be read."""
        ...
