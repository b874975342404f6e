"""Spares on disk: drivers that wait for an attempt, what each was handed, and which attempt is to run where.

    <root>/open/<spare id>              SpareFile, written before the spare is started; removed when it is settled
    <root>/<spare id>/                  what the spare's processes write
    <root>/<spare id>/handover.json     trainer.run_schema.Handover; put there by link(2), so that the first one wins
    <root>/launches/<submission id>     Launch: decided before anything is started or handed over

Every function may be cut off at any line and called again. What makes that safe: a decision, once written, is only ever
changed from a spare to a cold start, and only after that spare turned out to be another's.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.run_schema import HANDOVER_FILE, Handover

OPEN: Final = "open"
LAUNCHES: Final = "launches"

_Content = TypeVar("_Content", bound=BaseModel)


class SpareFile(BaseModel):
    """What a spare is fit for."""

    model_config = ConfigDict(frozen=True)

    num_workers: int


class Launch(BaseModel):
    """Where an attempt runs."""

    model_config = ConfigDict(frozen=True)

    spare: str | None
    """Id of the spare that it was meant for; None: a driver of its own."""


COLD: Final = Launch(spare=None)


@dataclass(frozen=True)
class Spare:
    """A driver that was started before its attempt."""

    id: str
    """Its name on the cluster, too."""
    folder: Path
    num_workers: int


class Spares:
    """All spares of one service, in a folder that it shares with the workers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._open, self._launches = root / OPEN, root / LAUNCHES

    def create(self, spare_id: str, num_workers: int) -> Spare:
        """The folder of a new spare, which is not started yet."""
        folder = self.root / spare_id
        folder.mkdir(parents=True, mode=0o700)
        self._open.mkdir(exist_ok=True, mode=0o700)
        _write(self._open / spare_id, SpareFile(num_workers=num_workers))
        return Spare(spare_id, folder, num_workers)

    def waiting(self) -> list[Spare]:
        """Those that nothing was handed to."""
        return [spare for spare in self.open() if _handed_to(spare.folder) is None]

    def open(self) -> list[Spare]:
        """Those that are not settled yet."""
        return list(self._read_open())

    def has_attempt(self, spare: Spare) -> bool:
        """Whether a spare was handed an attempt."""
        handover = _handed_to(spare.folder)
        return handover is not None and handover.attempt_dir is not None

    def was_sent_home(self, spare: Spare) -> bool:
        """Whether a spare was told to end."""
        return _handed_to(spare.folder) == Handover(attempt_dir=None)

    def hand_over(self, spare_id: str, attempt_dir: Path | None) -> bool:
        """Give a spare its attempt, or tell it to end; whether it has this one, from now or from an earlier call."""
        wanted = Handover(attempt_dir=None if attempt_dir is None else str(attempt_dir))
        path = self.root / spare_id / HANDOVER_FILE
        aside = path.with_name(f"{HANDOVER_FILE}.{secrets.token_hex(4)}")
        try:
            aside.write_text(wanted.model_dump_json())
            os.link(aside, path)
        except FileExistsError:
            return _handed_to(path.parent) == wanted
        except FileNotFoundError:  # its folder was removed: it had been sent home
            return False
        finally:
            aside.unlink(missing_ok=True)
        return True

    def settle(self, spare: Spare) -> None:
        """A spare that has ended or has its attempt is looked at no longer.

        What an attempt was handed to stays on record: it must not be started again elsewhere.
        """
        self.hand_over(spare.id, None)
        if not self.has_attempt(spare):
            shutil.rmtree(spare.folder, ignore_errors=True)
        (self._open / spare.id).unlink(missing_ok=True)

    def launch_of(self, submission_id: str) -> Launch | None:
        """What was decided about an attempt; None: nothing yet."""
        return _read(self._launches / submission_id, Launch)

    def decide(self, submission_id: str, launch: Launch) -> Launch:
        """Write down where an attempt is to run, before it is started there."""
        self._launches.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write(self._launches / submission_id, launch)
        return launch

    def _read_open(self) -> Iterator[Spare]:
        for file in sorted(self._open.glob("spare-*")):
            spare = _read(file, SpareFile)
            if spare is not None:
                yield Spare(file.name, self.root / file.name, spare.num_workers)


def _handed_to(folder: Path) -> Handover | None:
    return _read(folder / HANDOVER_FILE, Handover)


def _read(path: Path, kind: type[_Content]) -> _Content | None:
    """A file's content; None if it is not there, or a power cut has left it empty: with it went all that ran."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _write(path: Path, content: BaseModel) -> None:
    """Whole or not at all."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    aside.write_text(content.model_dump_json())
    aside.replace(path)
