"""The folder of an attempt: how it is prepared, and when its result counts."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest

from service.cluster.attempts import AttemptFolders, verified_result
from service.jobs.records import Submission
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


def read(folder: Path) -> AttemptContext:
    return AttemptContext.model_validate_json((folder / "attempt.json").read_bytes())


def test_prepare_is_safe_to_repeat(tmp_path: Path, store: Store) -> None:
    folders = AttemptFolders(tmp_path / "storage", "http://hush", "http://mlflow")
    store.submit(Submission("default", SPEC), NOW)
    [live] = store.live()
    first = read(folders.prepare(live.job, live.attempt, store))
    [live] = store.live()
    assert first.heartbeat_token is not None
    assert live.attempt.token_hash == hash_token(first.heartbeat_token)
    assert first.heartbeat_url == f"http://hush/api/v1/internal/attempts/{live.job.id}/1/heartbeat"
    again = read(folders.prepare(live.job, live.attempt, store))
    assert again == first  # a driver that has read the file already keeps a token that is good
    (folders.path(live.job.id, 1) / "attempt.json").write_text("{")
    torn = read(folders.prepare(live.job, live.attempt, store))
    [live] = store.live()
    assert torn.heartbeat_token != first.heartbeat_token
    assert live.attempt.token_hash == hash_token(torn.heartbeat_token or "")
    assert [path.name for path in folders.path(live.job.id, 1).iterdir()] == ["attempt.json"]


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
