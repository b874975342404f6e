"""Data sets over REST, and their check."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from marked_processes import wait_until
from service_stand_ins import RunningService, SubprocessLauncher, running_service
from sqlalchemy import Engine

from data_pipeline.manifest import Manifest
from service.access.roles import Role
from service.data_set_schemas import CheckView
from service.data_sets.checker import DataSetChecker
from service.data_sets.summary import summary_of
from service.store.data_sets import STALE_S, DataSetRecord, DataSets, NameTakenError
from service.store.database import open_engine

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def shards(manifest: Path) -> Iterator[Path]:
    """A data set of the test's own, where jobs may read."""
    folder = manifest.parent.parent / "own"
    shutil.copytree(manifest.parent, folder)
    yield folder
    shutil.rmtree(folder)


def post(service: RunningService, **new: Any) -> tuple[int, dict[str, Any]]:
    headers = {"Content-Type": "application/json"}
    answer = service.client.post("/api/v1/data-sets", content=json.dumps(new), headers=headers)
    return answer.status_code, answer.json()


def checked(service: RunningService, name: str) -> dict[str, Any]:
    started = service.client.post(f"/api/v1/data-sets/{name}/check")
    assert started.status_code == 202, started.text
    assert started.json()["status"] == "running"
    look = lambda: service.client.get(f"/api/v1/data-sets/{name}").json()["check"]  # noqa: E731
    wait_until(lambda: look()["status"] != "running", "the check ends")
    return look()


def test_what_a_manifest_says(service: RunningService, manifest: Path) -> None:
    answer = service.client.post("/api/v1/data-sets", json={"name": "digits", "manifest": str(manifest)})
    assert answer.status_code == 201, answer.text
    made = answer.json()
    read = Manifest.load(manifest)
    assert answer.headers["location"] == "/api/v1/data-sets/digits"
    assert service.client.get(answer.headers["location"]).json() == made
    assert (made["name"], made["manifest"], made["title"]) == ("digits", str(manifest), read.name)
    assert (made["digest"], made["classes"], made["check"]) == (read.digest, list(read.classes), None)
    train = read.split("train")
    assert made["splits"]["train"]["num_examples"] == train.num_examples
    assert made["splits"]["train"]["class_counts"] == list(train.class_counts)
    assert made["splits"]["train"]["num_shards"] == len(train.shards)
    size_bytes = sum((manifest.parent / s.path).stat().st_size for s in train.shards)
    size_bytes += sum((manifest.parent / s.index.path).stat().st_size for s in train.shards)
    assert made["splits"]["train"]["size_bytes"] == size_bytes
    assert made["num_examples"] == sum(split.num_examples for split in read.splits.values())


def test_pages_and_tenants(service: RunningService, manifest: Path) -> None:
    names = [f"set-{number}" for number in range(5)]
    for name in names:
        assert post(service, name=name, manifest=str(manifest))[0] == 201
    found, cursor = [], None
    while True:
        params = {"limit": 2} | ({} if cursor is None else {"cursor": cursor})
        page = service.client.get("/api/v1/data-sets", params=params).json()
        found += [data_set["name"] for data_set in page["items"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert found == names[::-1]
    with service.client_of(service.new_token(tenant="others")) as client:
        assert client.get("/api/v1/data-sets").json()["items"] == []
        assert client.get("/api/v1/data-sets/set-0").status_code == 404
        assert client.post("/api/v1/data-sets/set-0/check").status_code == 404
    with service.client_of(service.new_token(Role.VIEWER)) as client:
        assert client.get("/api/v1/data-sets/set-0").status_code == 200
        assert client.post("/api/v1/data-sets/set-0/check").status_code == 403


def test_what_is_refused(service: RunningService, manifest: Path, tmp_path: Path) -> None:
    torn = manifest.parent / "torn.json"
    torn.write_text("{")
    assert post(service, name="digits", manifest=str(manifest))[0] == 201
    code, problem = post(service, name="digits", manifest=str(manifest))
    assert (code, problem["detail"]) == (409, "There is a data set 'digits' already; choose another name.")
    for name in ("", "../x", "a b", "x" * 101, "é", "a\u0000"):
        code, problem = post(service, name=name, manifest=str(manifest))
        assert (code, problem["errors"][0]["field"]) == (422, "name")
    for wrong, says in (
        ("manifest.json", "must be an absolute path"),
        ("/etc/passwd", "must lie under one of"),
        (str(tmp_path / "elsewhere.json"), "must lie under one of"),
        (str(manifest.parent / "none.json"), "there is no such file"),
        (str(manifest.parent), "is a folder"),
        (str(torn), "is no data set manifest"),
        ("http://169.254.169.254/manifest.json", "is an address, and none is allowed"),
        ("pipe:cat /etc/passwd", "is not read"),
        ("/\u0000", "is not a path"),
        ("/\ud800", "is not a path"),
        ("", "at least 1 character"),
    ):
        code, problem = post(service, name="other", manifest=wrong)
        assert code == 422
        assert problem["errors"][0]["field"] == "manifest"
        assert says in problem["errors"][0]["message"]
    for name in ("nothing", "x" * 300, "%00", "%FF"):
        assert service.client.get(f"/api/v1/data-sets/{name}").status_code == 404
    torn.unlink()


def test_a_check_finds_what_is_wrong(service: RunningService, shards: Path) -> None:
    assert post(service, name="own", manifest=str(shards / "manifest.json"))[0] == 201
    sound = checked(service, "own")
    assert (sound["status"], sound["num_problems"], sound["error"]) == ("ok", 0, None)
    assert sound["num_checked"] == service.client.get("/api/v1/data-sets/own").json()["num_examples"]
    shard = next(shards.glob("**/*.tar"))
    content = bytearray(shard.read_bytes())
    content[1000:1010] = b"0123456789"
    shard.write_bytes(content)
    hurt = checked(service, "own")
    assert hurt["status"] == "problems"
    assert hurt["num_problems"] == len(hurt["problems"]) >= 1
    assert hurt["problems"][0]["file"] == str(shard.relative_to(shards))
    assert "sha256" in hurt["problems"][0]["reason"]


def test_a_check_of_what_is_gone_or_changed(service: RunningService, shards: Path) -> None:
    manifest = shards / "manifest.json"
    assert post(service, name="own", manifest=str(manifest))[0] == 201
    manifest.write_text(manifest.read_text().replace('"name": "', '"name": "other-', 1))
    changed = checked(service, "own")
    assert changed["status"] == "problems"
    assert "was registered" in changed["problems"][0]["reason"]
    manifest.unlink()
    gone = checked(service, "own")
    assert gone["status"] == "failed"
    assert "there is no such file" in gone["error"]
    manifest.symlink_to("/etc/passwd")
    led_out = checked(service, "own")
    assert led_out["status"] == "failed"
    assert "must lie under one of" in led_out["error"]


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = open_engine(database_url)
    yield engine
    engine.dispose()


def registered(data_sets: DataSets, manifest: Path, name: str = "digits") -> DataSetRecord:
    return data_sets.create("default", name, str(manifest), summary_of(Manifest.load(manifest)), NOW)


def test_the_store_on_both_databases(engine: Engine, manifest: Path) -> None:
    data_sets = DataSets(engine)
    made = registered(data_sets, manifest)
    assert data_sets.find("default", "digits") == made == data_sets.page("default", 5)[0]
    with pytest.raises(NameTakenError):
        registered(data_sets, manifest)
    assert data_sets.find("others", "digits") is None
    assert data_sets.page("default", 5, before_id=made.id) == []


def test_one_check_at_a_time_and_none_for_ever(engine: Engine, manifest: Path) -> None:
    data_sets = DataSets(engine)
    made = registered(data_sets, manifest)
    first = data_sets.begin_check(made.id, NOW)
    assert first is not None
    assert data_sets.begin_check(made.id, NOW + timedelta(seconds=STALE_S - 1)) is None
    later = NOW + timedelta(seconds=STALE_S + 1)
    second = data_sets.begin_check(made.id, later)  # who began the first was killed, or so it seems
    assert second is not None
    assert not data_sets.keep_check(made.id, first.model_copy(update={"status": "ok"}))
    assert data_sets.keep_check(made.id, second.model_copy(update={"status": "problems"}))
    kept = data_sets.find("default", "digits")
    assert kept is not None
    assert kept.check == CheckView(status="problems", started_at=later, updated_at=later)
    assert data_sets.begin_check(made.id, later) is not None


def test_checks_are_interrupted_when_the_service_ends(engine: Engine, manifest: Path) -> None:
    data_sets, entered, go = DataSets(engine), threading.Event(), threading.Event()

    def load_when_told(url: str) -> Manifest:
        entered.set()
        go.wait(60)
        return Manifest.load(url)

    checker = DataSetChecker(data_sets, load_when_told)
    for name in ("one", "two"):
        assert checker.begin(registered(data_sets, manifest, name), datetime.now(UTC)) is not None
    entered.wait(60)
    stopping = threading.Thread(target=checker.stop)
    stopping.start()
    wait_until(lambda: checker.is_stopping, "it is told to stop")
    go.set()
    stopping.join(60)
    for name in ("one", "two"):
        kept = data_sets.find("default", name)
        assert kept is not None
        assert kept.check is not None
        assert kept.check.status == "interrupted"


def test_a_service_that_stops_in_a_check_leaves_it_interrupted(
    tmp_path: Path, launcher: SubprocessLauncher, manifest: Path
) -> None:
    home, roots = tmp_path / "home", (manifest.parent.parent,)
    with running_service(home, launcher, allowed_roots=roots) as service:
        for name in ("one", "two", "three"):
            post(service, name=name, manifest=str(manifest))
            service.client.post(f"/api/v1/data-sets/{name}/check")
    with running_service(home, launcher, allowed_roots=roots) as service:
        for name in ("one", "two", "three"):
            status = service.client.get(f"/api/v1/data-sets/{name}").json()["check"]["status"]
            assert status in {"ok", "interrupted"}
            assert checked(service, name)["status"] == "ok"
