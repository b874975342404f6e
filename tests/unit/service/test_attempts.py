"""The folder of an attempt: how it is prepared, and when its result counts."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest

from service.cluster.attempts import AttemptFolders, attempt_failure, verified_result
from service.jobs.records import AttemptRecord, Fence, JobRecord, LeaseLostError, Submission
from service.store.database import migrate, open_engine
from service.store.store import Store
from service.store.writes import hash_token
from trainer.run_schema import AttemptContext
from trainer.spec import JobSpec

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = JobSpec.model_validate({"name": "job", "data": {"manifest": "/m"}})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    engine = open_engine(f"sqlite:///{tmp_path}/hush.db")
    migrate(engine)
    return Store(engine)


def attempt_of(job: JobRecord, store: Store) -> AttemptRecord:
    found = store.attempt(job.id, job.attempt)
    assert found is not None
    return found


def read(folder: Path) -> AttemptContext:
    return AttemptContext.model_validate_json((folder / "attempt.json").read_bytes())


def test_prepare_is_safe_to_repeat(tmp_path: Path, store: Store) -> None:
    folders = AttemptFolders(tmp_path / "storage", "http://hush", "http://mlflow")
    job, _ = store.submit(Submission("default", SPEC), NOW)
    first = read(folders.prepare(job, attempt_of(job, store), store))
    assert first.heartbeat_token is not None
    assert attempt_of(job, store).token_hash == hash_token(first.heartbeat_token)
    assert first.heartbeat_url == f"http://hush/api/v1/internal/attempts/{job.id}/1/heartbeat"
    again = read(folders.prepare(job, attempt_of(job, store), store))
    assert again == first  # a driver that has read the file already keeps a token that is good
    (folders.path(job.id, 1) / "attempt.json").write_text("{")
    torn = read(folders.prepare(job, attempt_of(job, store), store))
    assert torn.heartbeat_token != first.heartbeat_token
    assert attempt_of(job, store).token_hash == hash_token(torn.heartbeat_token or "")
    assert [path.name for path in folders.path(job.id, 1).iterdir()] == ["attempt.json"]


def test_a_retried_job_goes_on_from_those_before_it(tmp_path: Path, store: Store) -> None:
    folders = AttemptFolders(tmp_path / "storage", "http://hush", None)
    first, _ = store.submit(Submission("default", SPEC), NOW)
    second, _ = store.submit(Submission("default", SPEC, retry_of=first.id), NOW)
    third, _ = store.submit(Submission("default", SPEC, retry_of=second.id), NOW)
    earlier = [(second, 2), (second, 1), (first, 1)]
    for job, number in earlier:
        folders.path(job.id, number).mkdir(parents=True)
    context = read(folders.prepare(third, attempt_of(third, store), store))
    assert context.resume_dirs == tuple(str(folders.path(job.id, number)) for job, number in earlier)


def test_who_does_not_lead_any_more_prepares_nothing(tmp_path: Path, store: Store) -> None:
    folders = AttemptFolders(tmp_path / "storage", "http://hush", None)
    job, _ = store.submit(Submission("default", SPEC), NOW)
    with pytest.raises(LeaseLostError):
        folders.prepare(job, attempt_of(job, store), store, Fence("reconciler", 1))
    assert attempt_of(job, store).token_hash is None, "the token that it wrote is good for nothing"


@pytest.mark.parametrize("before", ["fsync", "link", "replace"])
def test_a_leader_that_was_overtaken_leaves_the_token_as_it_is(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """It sleeps at something that it does in the folder, while its successor prepares the same attempt."""
    slow, fast = (AttemptFolders(tmp_path / "storage", f"http://{name}", None) for name in ("slow", "fast"))
    job, _ = store.submit(Submission("default", SPEC), NOW)
    go_on = getattr(os, before)
    told = []

    def sleep(*arguments: object) -> None:
        monkeypatch.setattr(os, before, go_on)
        told.append(read(fast.prepare(job, attempt_of(job, store), store)).heartbeat_token)
        go_on(*arguments)

    monkeypatch.setattr(os, before, sleep)
    with pytest.raises(LeaseLostError):
        slow.prepare(job, attempt_of(job, store), store, Fence("reconciler", 1))
    token = read(slow.path(job.id, 1)).heartbeat_token
    assert told == [token]
    assert attempt_of(job, store).token_hash == hash_token(token or "")


def write_failure(folder: Path, **changes: object) -> None:
    failure = {"reason": "non_finite_loss", "message": "the loss is nan", "is_final": True}
    (folder / "failure.json").write_text(json.dumps(failure | changes))


def test_what_an_attempt_says_of_its_failure(tmp_path: Path) -> None:
    assert attempt_failure(tmp_path) is None
    write_failure(tmp_path)
    failure = attempt_failure(tmp_path)
    assert failure is not None
    assert (failure.reason, failure.message, failure.is_final) == ("non_finite_loss", "the loss is nan", True)
    write_failure(tmp_path, reason="boredom")
    assert attempt_failure(tmp_path) is None
    (tmp_path / "failure.json").write_text("{")
    assert attempt_failure(tmp_path) is None


def test_attempts_are_in_order_of_their_numbers(tmp_path: Path) -> None:
    folders = AttemptFolders(tmp_path, "http://hush", None)
    for number in (1, 2, 10):
        folders.path("job", number).mkdir(parents=True)
    assert [folder.name for folder in folders.newest_first("job")] == ["attempt-10", "attempt-2", "attempt-1"]


def write_result(folder: Path, **changes: object) -> None:
    result = {
        "job_id": "job",
        "attempt": 1,
        "outcome": "succeeded",
        "num_epochs": 1,
        "num_steps": 1,
        "metrics": {},
        "files": {"model.pt": sha256(b"weights").hexdigest()},
    }
    (folder / "model.pt").write_bytes(b"weights")
    (folder / "result.json").write_text(json.dumps(result | changes))


def test_a_good_result(tmp_path: Path) -> None:
    write_result(tmp_path)
    assert verified_result(tmp_path, "job", 1).outcome == "succeeded"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"files": {"model.pt": "0" * 64}}, "model.pt is damaged"),
        ({"files": {"gone.json": "0" * 64}}, "gone.json stands in result.json but cannot be read"),
        ({"files": {"../model.pt": "0" * 64}}, "outside of the attempt's folder"),
        ({"files": {"/etc/passwd": "0" * 64}}, "outside of the attempt's folder"),
        ({"job_id": "other"}, "that of job other"),
        ({"attempt": 2}, "attempt 2"),
        ({"outcome": "perfect"}, "cannot be read"),
    ],
)
def test_a_bad_result(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    write_result(tmp_path, **changes)
    with pytest.raises(ValueError, match=words):
        verified_result(tmp_path, "job", 1)


def test_no_result(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without writing"):
        verified_result(tmp_path, "job", 1)
