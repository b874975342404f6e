"""The folder of an attempt (see trainer.run_schema): files are published whole, then named in the journal."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from data_pipeline.storage import atomic_file
from data_pipeline.storage.atomic_file import sha256_of, write_atomically
from trainer.run_schema import CHECKPOINTS_DIR, JOURNAL_FILE, RESULT_FILE, AttemptResult, JournalEntry


class RunFolder:
    """What one attempt leaves behind. Only rank 0 writes here, one writer at a time."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._journal = self.path / JOURNAL_FILE

    def log(self, *, step: int, epoch: int, metrics: dict[str, float]) -> None:
        """Append metrics to the journal."""
        self._append(JournalEntry(time_ms=_now_ms(), step=step, epoch=epoch, metrics=metrics))

    def publish(self, name: str, content: bytes | Callable[[Path], None], *, step: int, epoch: int) -> None:
        """Write a file whole, then say in the journal that it is there; `content` may write it to the path it gets."""
        path = self.path / name
        if isinstance(content, bytes):
            write_atomically(path, content)
        else:
            atomic_file.publish(atomic_file.write_aside(path, content), path)
        self._append(JournalEntry(time_ms=_now_ms(), step=step, epoch=epoch, file=name))

    def journal_bytes(self) -> int:
        """Length of the journal, all of it on the disk."""
        with self._journal.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def entries(self) -> list[JournalEntry]:
        """All whole lines of the journal."""
        if not self._journal.exists():
            return []
        lines = self._journal.read_bytes().split(b"\n")[:-1]
        return [JournalEntry.model_validate_json(line) for line in lines]

    def begin(self, source: Path | None, journal_bytes: int) -> None:
        """Make this folder hold just what a run had left when its journal was `journal_bytes` long; of nothing if 0.

        `source` is the folder that run wrote to: this one (a restart), or an earlier attempt's, whose files are linked.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / RESULT_FILE).unlink(missing_ok=True)
        kept = b""
        if source is not None and journal_bytes:
            kept = (source / JOURNAL_FILE).read_bytes()[:journal_bytes]
            assert len(kept) == journal_bytes, "a journal is flushed before the checkpoint that counts its bytes"
        write_atomically(self._journal, kept)
        if source is not None and source.resolve() != self.path.resolve():
            for entry in self.entries():
                if entry.file is not None:
                    _link(source / entry.file, self.path / entry.file)
            for checkpoint in (source / CHECKPOINTS_DIR).glob("step_*.pt"):
                _link(checkpoint, self.path / CHECKPOINTS_DIR / checkpoint.name)

    def finish(self, result: AttemptResult) -> None:
        """Declare the attempt complete: the last thing an attempt does."""
        write_atomically(self.path / RESULT_FILE, (result.model_dump_json(indent=2) + "\n").encode())

    def checksums(self) -> dict[str, str]:
        """sha256 of each file that the journal names, and of the journal itself."""
        names = {entry.file for entry in self.entries() if entry.file is not None}
        return {name: sha256_of(self.path / name) for name in sorted(names | {JOURNAL_FILE})}

    def _append(self, entry: JournalEntry) -> None:
        with self._journal.open("ab") as file:
            file.write(entry.model_dump_json(exclude_defaults=True).encode() + b"\n")


def _link(source: Path, target: Path) -> None:
    """A hard link where the file system has them, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
