"""Shards in WebDataset's form that somebody else wrote: what each sample is, and where its picture lies.

A sample is a run of members of one key: the name up to the first dot of its last part; the rest is the member's kind,
in small letters. `000012.jpg`, `000012.cls` and `000012.json` are one sample of key `000012`. The picture is the member
of an image's kind; the label stands in a member of text (`cls`) or in a field of one of JSON (`json:label`), as a
number or as the name of a class.

Nothing is unpickled: shards with pickles in them are refused. A tar that was cut between two members, or goes on with a
header that cannot be read, is noticed, where tarfile and webdataset take it for the end.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Self

import xxhash

from data_pipeline.errors import BadImageError
from data_pipeline.examples import Place
from data_pipeline.pictures import decode
from data_pipeline.sources.image_folder import SUFFIXES
from data_pipeline.storage import Storage

PICKLES = ("pyd", "pkl", "pickle", "pth", "pt")
MAX_MEMBER_BYTES = 256 << 20
"""Larger pictures are not read."""
MAX_LABEL_BYTES = 1 << 20
_READ_BYTES = 4 << 20
_NOTES = re.compile(r"__[^/]*__(/|$)")
"""What webdataset itself leaves out."""
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")


@dataclasses.dataclass(frozen=True)
class LabelPlace:
    """The member, and its field if it is JSON, in which a label stands."""

    kind: str
    field: str | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """`cls` or `json:label`."""
        kind, colon, field = text.partition(":")
        if not kind or (colon and not field) or (kind.lower().rpartition(".")[2] in PICKLES):
            raise ValueError(f"label {text!r} must be the kind of a member of text, like cls, or KIND:FIELD of JSON")
        return cls(kind.lower(), field or None)

    def __str__(self) -> str:
        return self.kind if self.field is None else f"{self.kind}:{self.field}"


@dataclasses.dataclass(frozen=True)
class LabelRules:
    """Where labels stand, and which there are."""

    given: LabelPlace
    clean: LabelPlace | None
    """None: unknown."""
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for label, name in enumerate(self.classes):
            if _is_number(name) and int(name) != label:
                raise ValueError(
                    f"class {name!r} has number {label}: what would a label {name!r} stand for? Classes whose names are"
                    " numbers must bear their own; give this one another name"
                )


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One sample of a shard, good or bad."""

    key: str
    suffix: str
    """Of the picture; empty if there is none."""
    given_label: int | None
    """None: it has none that can be used."""
    clean_label: int | None
    place: Place | None
    """None: it has no picture that can be read."""
    problem: str | None
    """Why it cannot be used; None: it can."""


class ForeignShard(NamedTuple):
    """What was found in a shard."""

    size_bytes: int
    sha256: str
    samples: list[Sample]


class _Member(NamedTuple):
    key: str
    kind: str
    offset: int
    data: bytes | None
    """None: too large, and not read."""


def read_shard(storage: Storage, path: str, rules: LabelRules, on_bytes: Callable[[int], None]) -> ForeignShard:
    """Read the shard from its beginning to its end, once. ValueError if it is no whole tar, or has pickles in it."""
    raw = _HashedFile(storage, path, on_bytes)
    stream = io.BufferedReader(raw, _READ_BYTES)
    keys: set[str] = set()
    samples: list[Sample] = []
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for key, members in itertools.groupby(_members(tar, path, rules), lambda member: member.key):
                sample = _sample(key, list(members), rules)
                if key in keys:
                    sample = dataclasses.replace(sample, problem="its key is that of another sample of the shard")
                keys.add(key)
                samples.append(sample)
            end = tar.offset
    except tarfile.TarError as error:
        raise ValueError(f"{path} is no whole, uncompressed tar file: {error}") from None
    while stream.read(_READ_BYTES):
        pass  # what follows the mark of the end counts for the checksum
    if storage.read_range(path, end, tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise ValueError(
            f"{path} is damaged or cut: at byte {end:,}, after {len(samples):,} samples, there is neither a member nor"
            " the mark of the end"
        )
    return ForeignShard(raw.tell(), raw.sha256.hexdigest(), samples)


def _members(tar: tarfile.TarFile, path: str, rules: LabelRules) -> Iterator[_Member]:
    """Those that belong to samples; what no picture or label stands in is not read, and has no data."""
    wanted = {*SUFFIXES, rules.given.kind, *([rules.clean.kind] if rules.clean else [])}
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # documented, not in the stubs: frees 1 KB a file
        name = _NAME.fullmatch(member.name.removeprefix("./"))
        if name is None or not member.isreg() or member.issparse() or _NOTES.match(member.name):
            continue
        key, kind = name[1], name[2].lower()
        if kind.rpartition(".")[2] in PICKLES:
            raise ValueError(
                f"{path}: {member.name!r} is a pickle, which may run code; shards with pickles are refused"
            )
        is_read = kind in wanted and member.size <= MAX_MEMBER_BYTES
        file = tar.extractfile(member) if is_read else None
        yield _Member(key, kind, member.offset_data, None if file is None else file.read())


def _sample(key: str, members: Sequence[_Member], rules: LabelRules) -> Sample:
    """What the members of one key make; `problem` is the first that is found."""
    times = Counter(member.kind for member in members)
    problems = [f"has {count} members {_named([kind])}" for kind, count in times.items() if count > 1]
    by_kind = {member.kind: member for member in members}
    pictures = [member for member in by_kind.values() if member.kind in SUFFIXES]
    place = given_label = clean_label = None
    try:
        if len(pictures) != 1:
            raise BadImageError(f"has {len(pictures)} pictures, not one, among its members {_named(by_kind)}")
        place = _place(pictures[0])
    except BadImageError as error:
        problems.append(str(error))
    try:
        given_label = _label(by_kind, rules.given, rules.classes)
        if given_label is None:
            problems.append(f"has no label in .{rules.given}; its members are {_named(by_kind)}")
        if rules.clean is not None:
            clean_label = _label(by_kind, rules.clean, rules.classes)
    except ValueError as error:
        problems.append(str(error))
    suffix = pictures[0].kind if pictures else ""
    return Sample(key, suffix, given_label, clean_label, place, problems[0] if problems else None)


def _named(kinds: Iterable[str]) -> str:
    """For people; kinds come from the file, and may be any bytes."""
    return ", ".join(f".{ascii(kind)[1:-1][:20]}" for kind in itertools.islice(kinds, 5))


def _place(picture: _Member) -> Place:
    if picture.data is None:
        raise BadImageError(f"its picture has more than {MAX_MEMBER_BYTES:,} bytes")
    height, width = decode.image_shape(picture.data)
    return Place(picture.offset, len(picture.data), xxhash.xxh3_64_intdigest(picture.data), height, width)


def _label(by_kind: Mapping[str, _Member], place: LabelPlace, classes: tuple[str, ...]) -> int | None:
    """None: the sample has no such member, or no such field; ValueError if what stands there is no label."""
    member = by_kind.get(place.kind)
    if member is None:
        return None
    if member.data is None or len(member.data) > MAX_LABEL_BYTES:
        raise ValueError(f".{member.kind} has more than {MAX_LABEL_BYTES:,} bytes")
    try:
        value: object = member.data.decode("utf-8").strip()
        if place.field is not None:
            fields = json.loads(str(value))
            value = fields.get(place.field) if isinstance(fields, dict) else fields
    except (ValueError, RecursionError):
        raise ValueError(f".{member.kind} is no {'text' if place.field is None else 'JSON'}") from None
    if value is None:
        return None
    text = str(value)
    if not isinstance(value, bool) and _is_number(text):
        if int(text) >= len(classes):
            raise ValueError(f"label {text} must be 0 to {len(classes) - 1}")
        return int(text)
    if text not in classes:
        raise ValueError(f"label {text[:40]!r} is neither a number from 0 up nor a class")
    return classes.index(text)


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 10


class _HashedFile(io.RawIOBase):
    """A file of a storage, read once from beginning to end, and its checksum."""

    def __init__(self, storage: Storage, path: str, on_bytes: Callable[[int], None]) -> None:
        self._storage, self._path, self._on_bytes = storage, path, on_bytes
        self._offset = 0
        self.sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # what BufferedReader hands over
        piece = self._storage.read_range(self._path, self._offset, len(buffer))
        buffer[: len(piece)] = piece
        self.sha256.update(piece)
        self._offset += len(piece)
        self._on_bytes(len(piece))
        return len(piece)

    def tell(self) -> int:
        return self._offset
