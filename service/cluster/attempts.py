"""Folders of attempts: `<storage>/jobs/<job id>/attempt-<n>`. How one is prepared, and when its result counts."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import file_digest
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from service.control.failpoints import Failpoint, failpoint
from service.jobs.records import AttemptRecord, Fence, JobRecord
from service.store.store import Store
from service.store.writes import hash_token
from trainer.run_schema import (
    ATTEMPT_FILE,
    EPOCH_END_METRIC,
    FAILURE_FILE,
    JOURNAL_FILE,
    RESULT_FILE,
    AttemptContext,
    AttemptFailure,
    AttemptResult,
    EpochSummary,
    JournalEntry,
)


class AttemptFolders:
    """All attempts under one storage folder, which the service and every worker share."""

    def __init__(self, storage: Path, public_url: str, mlflow_uri: str | None) -> None:
        """`public_url` is where the workers reach this service."""
        self._jobs = storage / "jobs"
        self._public_url = public_url
        self._mlflow_uri = mlflow_uri

    def path(self, job_id: str, number: int) -> Path:
        """Folder of one attempt."""
        return self._jobs / job_id / f"attempt-{number}"

    def newest_first(self, job_id: str) -> Iterator[Path]:
        """Folders of a job's attempts that are there, the newest first."""
        folders = (self._jobs / job_id).glob("attempt-*")
        yield from sorted(folders, key=lambda folder: int(folder.name.removeprefix("attempt-")), reverse=True)

    def prepare(self, job: JobRecord, attempt: AttemptRecord, store: Store, fence: Fence | None = None) -> Path:
        """Write attempt.json, whose token has its hash in the store before the attempt is handed to the cluster.

        Safe to repeat after a crash at any line, and by two processes that both think they lead: the first token in the
        file is kept, as a driver may have read it. The attempt resumes from its job's earlier ones, then from those of
        the job that this one retries, and so on.
        """
        folder = self.path(job.id, attempt.number)
        folder.mkdir(parents=True, exist_ok=True)
        token = self._write(folder / ATTEMPT_FILE, self._context(job, attempt, store))
        failpoint(Failpoint.ATTEMPT_FILE_AFTER)
        if hash_token(token) != attempt.token_hash:
            failpoint(Failpoint.TOKEN_BEFORE)
            store.set_token(job.id, attempt.number, hash_token(token), fence)
            failpoint(Failpoint.TOKEN_AFTER)
        return folder

    def _context(self, job: JobRecord, attempt: AttemptRecord, store: Store) -> AttemptContext:
        folder = self.path(job.id, attempt.number)
        earlier = [other for job_id in store.lineage(job) for other in self.newest_first(job_id)]
        return AttemptContext(
            job_id=job.id,
            attempt=attempt.number,
            spec=job.spec,
            run_dir=str(folder),
            resume_dirs=tuple(str(other) for other in earlier if other != folder),
            heartbeat_url=f"{self._public_url}/api/v1/internal/attempts/{job.id}/{attempt.number}/heartbeat",
            heartbeat_token=secrets.token_urlsafe(32),
            mlflow_uri=self._mlflow_uri,
            mlflow_run_id=job.mlflow_run_id,
        )

    @staticmethod
    def _write(path: Path, context: AttemptContext) -> str:
        """Write what an attempt is told, under the token that is in the file already, if there is one; that token."""
        known = _token_in(path)
        if known is None:
            with _private_file_beside(path, context) as aside, suppress(OSError):
                os.link(aside, path)  # fails where another process was faster: its token stays
            known = _token_in(path)
        if known is not None:
            context = context.model_copy(update={"heartbeat_token": known})
        token = context.heartbeat_token
        assert token is not None
        with _private_file_beside(path, context) as aside:
            aside.replace(path)  # torn, or this service's address is another by now
        return token


def _token_in(path: Path) -> str | None:
    try:
        return AttemptContext.model_validate_json(path.read_bytes()).heartbeat_token
    except (OSError, ValidationError):
        return None


@contextmanager
def _private_file_beside(path: Path, context: AttemptContext) -> Iterator[Path]:
    """A file that only its owner may read, from where it can be made to appear whole as `path`."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(context.model_dump_json().encode())
            file.flush()
            os.fsync(file.fileno())
        yield aside
    finally:
        aside.unlink(missing_ok=True)


def attempt_failure(folder: Path) -> AttemptFailure | None:
    """Why an attempt failed, as it says itself; None if it says nothing that can be read."""
    try:
        return AttemptFailure.model_validate_json((folder / FAILURE_FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def finished_epochs(folder: Path) -> tuple[EpochSummary, ...]:
    """The epochs whose ends stand in an attempt's journal; lines that cannot be read are passed over."""
    try:
        lines = (folder / JOURNAL_FILE).read_bytes().split(b"\n")[:-1]
    except OSError:
        return ()
    entries = [entry for line in lines if (entry := _entry(line)) is not None]
    ends = [entry for entry in entries if EPOCH_END_METRIC in entry.metrics]
    return tuple(EpochSummary(epoch=entry.epoch, metrics=entry.metrics) for entry in ends)


def _entry(line: bytes) -> JournalEntry | None:
    try:
        return JournalEntry.model_validate_json(line)
    except ValidationError:
        return None


def result_written_at(folder: Path) -> float | None:
    """Unix time at which result.json was written; None if it is not there."""
    try:
        return (folder / RESULT_FILE).stat().st_mtime
    except FileNotFoundError:
        return None


def verified_result(folder: Path, job_id: str, number: int) -> AttemptResult:
    """The attempt's result, if it is there and every checksum holds; else a ValueError that says what is wrong."""
    try:
        result = AttemptResult.model_validate_json((folder / RESULT_FILE).read_bytes())
    except FileNotFoundError:
        raise ValueError(f"The driver ended without writing {RESULT_FILE}.") from None
    except ValidationError as error:
        raise ValueError(f"{RESULT_FILE} cannot be read: {error.error_count()} errors") from None
    if (result.job_id, result.attempt) != (job_id, number):
        raise ValueError(f"{RESULT_FILE} is that of job {result.job_id}, attempt {result.attempt}.")
    for name, expected in result.files.items():
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts:
            raise ValueError(f"{RESULT_FILE} names {name!r}, which is outside of the attempt's folder.")
        try:
            with (folder / relative).open("rb") as file:
                found = file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ValueError(f"{name} stands in {RESULT_FILE} but cannot be read: {error.strerror}.") from None
        if found != expected:
            raise ValueError(f"{name} is damaged: its SHA-256 is {found}, {RESULT_FILE} says {expected}.")
    return result
