"""Whatever is sent, the answer is a problem that says what is wrong, and never a 5xx."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from service_stand_ins import RunningService, SubprocessLauncher, running_service, spec_json

NOBODY = "0" * 26


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, manifest: Path) -> Iterator[RunningService]:
    launcher = SubprocessLauncher()
    launcher.answers = False  # nothing that is accepted here shall start
    roots = (manifest.parent.parent,)
    home = tmp_path_factory.mktemp("problems") / "home"
    with running_service(home, launcher, allowed_roots=roots, max_body_bytes=100_000) as running:
        yield running


def is_problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert {"type", "title", "detail", "instance"} <= set(problem)
    return problem


def post(service: RunningService, content: bytes, **headers: str) -> httpx.Response:
    sent = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return service.client.post("/api/v1/jobs", content=content, headers=sent)


@pytest.mark.parametrize(
    "path", ["/nothing", "/api/v1", "/api/v1/job", f"/api/v1/jobs/{NOBODY}/nothing", "/api/v2/jobs"]
)
def test_unknown_route(service: RunningService, path: str) -> None:
    assert is_problem(service.client.get(path), 404)["instance"] == path


@pytest.mark.parametrize(
    "job_id", [NOBODY, "x", "%00", "a" * 5000, "..%2f..", "%F0%9F%99%82", "%ff", NOBODY.upper() + "I"]
)
@pytest.mark.parametrize(
    "tail", ["", "/events", "/metrics", "/label-noise", "/evaluation", "/examples", "/logs", "/logs/1/driver"]
)
def test_unknown_job(service: RunningService, job_id: str, tail: str) -> None:
    is_problem(service.client.get(f"/api/v1/jobs/{job_id}{tail}"), 404)
    if not tail:
        is_problem(service.client.post(f"/api/v1/jobs/{job_id}/cancel"), 404)


def test_wrong_method_says_which_are_right(service: RunningService) -> None:
    answer = service.client.delete("/api/v1/jobs")
    is_problem(answer, 405)
    assert answer.headers["allow"] == "GET, POST"
    assert service.client.put(f"/api/v1/jobs/{NOBODY}/cancel").headers["allow"] == "POST"


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 90_000, b'{"a": ' + b"1" * 5000 + b"}", b"nul"])
def test_not_json(service: RunningService, content: bytes) -> None:
    is_problem(post(service, content), 400)


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b'"x"', b"1e999", b"{}", b'{"\\ud800": 1}', b'{"name": NaN}'])
def test_not_a_job(service: RunningService, content: bytes) -> None:
    assert is_problem(post(service, content), 422)["errors"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data"])
def test_not_said_to_be_json(service: RunningService, content_type: str) -> None:
    is_problem(post(service, b"{}", content_type=content_type), 415)


def test_too_large(service: RunningService) -> None:
    is_problem(post(service, b'"' + b"x" * 200_000 + b'"'), 413)
    chunks = (b"x" * 10_000 for _ in range(20))
    headers = {"content-type": "application/json"}
    is_problem(service.client.post("/api/v1/jobs", content=chunks, headers=headers), 413)


@pytest.mark.parametrize(
    ("changes", "field", "value", "words"),
    [
        ({"method": {"kind": "ivon", "lr": -1}}, "method.lr", "-1", "greater than 0"),
        ({"method": {"kind": "sgd", "hess_init": 1}}, "method.hess_init", "1", "allowed are kind, lr"),
        ({"nonsense": 1}, "nonsense", "1", "allowed are api_version"),
        ({"resources": {"num_workers": 3}}, "spec", None, "must be a multiple of resources.num_workers 3"),
        ({"data": {"manifest": "data/manifest.json"}}, "data.manifest", "'data/manifest.json'", "absolute path"),
        ({"data": {"manifest": "/etc/passwd"}}, "data.manifest", "'/etc/passwd'", "HUSH_ALLOWED_ROOTS"),
        ({"data": {"manifest": "/x\0y"}}, "data.manifest", "'/x\\x00y'", "is not a path"),
        ({"data": {"manifest": "/" + "x" * 4000}}, "data.manifest", None, "must lie under"),
        ({"model": {"weights": "/etc/passwd"}}, "model.weights", "'/etc/passwd'", "HUSH_ALLOWED_ROOTS"),
    ],
)
def test_a_bad_spec_names_field_value_and_what_is_allowed(
    service: RunningService, manifest: Path, *, changes: dict[str, Any], field: str, value: str | None, words: str
) -> None:
    answer = post(service, json.dumps({**spec_json(manifest), **changes}).encode())
    [error] = is_problem(answer, 422)["errors"]
    assert error["field"] == field
    assert value is None or error["value"] == value
    assert words in error["message"]


def test_files_that_cannot_be_read(service: RunningService, manifest: Path, tmp_path: Path) -> None:
    folder = manifest.parent.parent
    broken, link = folder / "broken.json", folder / "link.json"
    broken.write_text("{")
    link.symlink_to("/etc/passwd")
    for path, words in [
        (folder / "none.json", "no such file"),
        (broken, "no data set manifest"),
        (link, "must lie under"),
    ]:
        [error] = is_problem(post(service, json.dumps(spec_json(path)).encode()), 422)["errors"]
        assert (error["field"], error["value"]) == ("data.manifest", repr(str(path)))
        assert words in error["message"]
    weights = {"arch": "small_cnn", "weights": str(folder / "none.pt")}
    [error] = is_problem(post(service, json.dumps(spec_json(manifest, model=weights)).encode()), 422)["errors"]
    assert error["field"] == "model.weights"
    assert "No such file" in error["message"]


@pytest.mark.parametrize("key", ["a b", "x" * 256, ""])
def test_bad_idempotency_key(service: RunningService, manifest: Path, key: str) -> None:
    is_problem(post(service, json.dumps(spec_json(manifest)).encode(), Idempotency_Key=key), 422)


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=501", "limit=x", f"limit={10**30}", "cursor=x", "cursor=%00", "state=running", "state=",
        "name=" + "x" * 300,
    ],
)  # fmt: skip
def test_bad_query(service: RunningService, query: str) -> None:
    problem = is_problem(service.client.get(f"/api/v1/jobs?{query}"), 422)
    assert problem["errors"][0]["field"] == f"query.{query.partition('=')[0]}"


def test_names_that_no_job_has(service: RunningService) -> None:
    for name in ("%00", "%ff", "%F0%9F%99%82", "'%20or%201=1"):
        assert service.client.get(f"/api/v1/jobs?name={name}&method={name}").json()["items"] == []


@pytest.fixture(scope="module")
def job(service: RunningService, manifest: Path) -> str:
    return str(service.submit(manifest)["id"])


@pytest.mark.parametrize(
    "path",
    [
        "events?after=-1", f"events?after={2**63}", "events?limit=0", "label-noise?epoch=0", "evaluation?epoch=-1",
        "examples?sort=name", "examples?order=up", "examples?cursor=1", "examples?cursor=x-1", "examples?limit=1001",
        f"examples?given_label={2**70}", "examples?epoch=1e3",
    ],
)  # fmt: skip
def test_bad_query_of_a_job(service: RunningService, job: str, path: str) -> None:
    is_problem(service.client.get(f"/api/v1/jobs/{job}/{path}"), 422)


def test_bad_last_event_id(service: RunningService, job: str) -> None:
    headers = {"Accept": "text/event-stream", "Last-Event-ID": "x"}
    is_problem(service.client.get(f"/api/v1/jobs/{job}/events", headers=headers), 422)


@pytest.mark.parametrize(
    "changes",
    [
        {"finished_epochs": [{"epoch": 10**30, "metrics": {}}]}, {"finished_epochs": [{"epoch": 0, "metrics": {}}]},
        {"mlflow_run_id": "x" * 65}, {"mlflow_run_id": "a\0b"}, {"mlflow_experiment_id": "\ud800"},
    ],
)  # fmt: skip
def test_heartbeats_that_the_database_cannot_hold(service: RunningService, job: str, changes: dict[str, Any]) -> None:
    progress = {"phase": "training", "epoch": 1, "num_epochs": 2, "step": 1, "num_steps": 2}
    url, content = f"/api/v1/internal/attempts/{job}/1/heartbeat", json.dumps({"progress": progress, **changes})
    is_problem(service.client.post(url, content=content, headers={"Content-Type": "application/json"}), 422)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    [
        "name",
        "data",
        "model",
        "method",
        "target",
        "schedule",
        "label_noise",
        "resources",
        "precision",
        "seed",
        "api_version",
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(FIELDS, JSON, max_size=3), whole=st.none() | JSON)
def test_no_body_makes_a_5xx(service: RunningService, manifest: Path, changes: dict[str, Any], whole: object) -> None:
    body = {**spec_json(manifest), **changes} if whole is None else whole
    answer = post(service, json.dumps(body).encode())
    assert answer.status_code in {202, 422}
    if answer.status_code == 422:
        is_problem(answer, 422)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tail=st.sampled_from(["", "/events", "/examples", "/label-noise", "/logs", "/logs/1/driver"]),
    name=st.sampled_from(["limit", "cursor", "after", "epoch", "state", "name", "sort", "given_label", "tail_lines"]),
    value=st.text(st.characters(codec="utf-8"), max_size=30) | st.integers().map(str),
)
def test_no_query_makes_a_5xx(service: RunningService, job: str, tail: str, name: str, value: str) -> None:
    path = f"/api/v1/jobs/{job}{tail}" if tail else "/api/v1/jobs"
    assert service.client.get(path, params={name: value}).status_code in {200, 404, 422}
