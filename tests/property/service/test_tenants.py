"""Whatever tenants do, in whatever order: nobody ever sees, changes or finds out about another tenant's job."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from sample_data import build_digits
from service_stand_ins import RunningService, SubprocessLauncher, running_service, spec_json

from service.access.roles import Role

TENANTS = ("a", "b", "c")
NAMES = ("x", "y")
KEYS = ("monday", "tuesday")
WRITERS = st.sampled_from([Role.SUBMITTER, Role.ADMIN])
ANYBODY = st.sampled_from(list(Role))
SOME_TENANT = st.sampled_from(TENANTS)
TAILS = ("", "/attempts", "/events", "/metrics", "/label-noise", "/evaluation", "/examples")
NUMBERS = itertools.count()


class Tenants(RuleBasedStateMachine):
    """Three tenants who use the same names and keys; beside them, whose each job is."""

    def __init__(self, service: RunningService, manifest: Path) -> None:
        super().__init__()
        self.service, self.manifest = service, manifest
        number = next(NUMBERS)  # tenants that nobody has used yet
        self.clients = {
            (tenant, role): service.client_of(service.new_token(role, f"{tenant}{number}"))
            for tenant in TENANTS
            for role in Role
        }
        self.jobs: dict[str, dict[str, Any]] = {tenant: {} for tenant in TENANTS}
        self.by_key: dict[tuple[str, str], str] = {}

    def teardown(self) -> None:
        for client in self.clients.values():
            client.close()

    @rule(tenant=SOME_TENANT, role=WRITERS, name=st.sampled_from(NAMES), key=st.none() | st.sampled_from(KEYS))
    def submit(self, tenant: str, role: Role, name: str, key: str | None) -> None:
        headers = {} if key is None else {"Idempotency-Key": key}
        body = spec_json(self.manifest, name=name)
        answer = self.clients[tenant, role].post("/api/v1/jobs", json=body, headers=headers)
        known = self.by_key.get((tenant, key or ""))
        if answer.status_code == 409:
            assert known is not None, "the key of another tenant is none"
            assert known in answer.json()["detail"]
            return
        assert answer.status_code == 202, answer.text
        job = answer.json()
        assert known in {None, job["id"]}
        assert not any(job["id"] in jobs for other, jobs in self.jobs.items() if other != tenant)
        self.jobs[tenant][job["id"]] = job
        if key is not None:
            self.by_key[tenant, key] = job["id"]

    @precondition(lambda self: any(self.jobs.values()))
    @rule(data=st.data(), tenant=SOME_TENANT, role=WRITERS, what=st.sampled_from(["cancel", "retry"]))
    def change(self, data: st.DataObject, tenant: str, role: Role, what: str) -> None:
        owner, job_id = self._any_job(data)
        answer = self.clients[tenant, role].post(f"/api/v1/jobs/{job_id}/{what}")
        if tenant != owner:
            self._is_not_there(answer, job_id)
        elif what == "cancel":
            assert answer.json()["state"] == "CANCELLED"
            self.jobs[owner][job_id] = answer.json()
        elif answer.status_code == 202:
            self.jobs[owner][answer.json()["id"]] = answer.json()

    @precondition(lambda self: any(self.jobs.values()))
    @rule(data=st.data(), tenant=SOME_TENANT, role=ANYBODY, tail=st.sampled_from(TAILS))
    def look(self, data: st.DataObject, tenant: str, role: Role, tail: str) -> None:
        owner, job_id = self._any_job(data)
        answer = self.clients[tenant, role].get(f"/api/v1/jobs/{job_id}{tail}")
        if tenant != owner:
            self._is_not_there(answer, job_id)
        elif not tail:
            assert answer.json()["id"] == job_id

    @rule(tenant=SOME_TENANT, role=ANYBODY, limit=st.integers(1, 3), data=st.data())
    def list_jobs(self, tenant: str, role: Role, limit: int, data: st.DataObject) -> None:
        """Page by page, also with a cursor that is another tenant's job."""
        name = data.draw(st.none() | st.sampled_from(NAMES))
        ids = [job_id for jobs in self.jobs.values() for job_id in jobs]
        params: dict[str, Any] = {"limit": limit} | ({} if name is None else {"name": name})
        if cursor := data.draw(st.none() | st.sampled_from(ids) if ids else st.none()):
            params["cursor"] = cursor
        found = [job["id"] for job in self._walk(self.clients[tenant, role], params)]
        mine = [job for job in self.jobs[tenant].values() if name in {None, job["name"]}]
        assert found == sorted((job["id"] for job in mine if cursor is None or job["id"] < cursor), reverse=True)

    @invariant()
    def jobs_are_as_their_tenants_left_them(self) -> None:
        for tenant in TENANTS:
            found = {job["id"]: job["state"] for job in self._walk(self.clients[tenant, Role.VIEWER], {"limit": 100})}
            assert found == {job_id: job["state"] for job_id, job in self.jobs[tenant].items()}

    def _any_job(self, data: st.DataObject) -> tuple[str, str]:
        return data.draw(st.sampled_from([(tenant, job_id) for tenant, jobs in self.jobs.items() for job_id in jobs]))

    @staticmethod
    def _walk(client: httpx.Client, params: dict[str, Any]) -> Iterator[dict[str, Any]]:
        while True:
            page = client.get("/api/v1/jobs", params=params).json()
            yield from page["items"]
            if page["next_cursor"] is None:
                return
            params = {**params, "cursor": page["next_cursor"]}

    @staticmethod
    def _is_not_there(answer: httpx.Response, job_id: str) -> None:
        assert (answer.status_code, answer.json()["detail"]) == (404, f"There is no job '{job_id}'.")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    build_digits(folder / "shards")
    return folder / "shards" / "manifest.json"


def test_no_tenant_sees_anothers_jobs(tmp_path: Path, manifest: Path, database_url: str) -> None:
    launcher = SubprocessLauncher()
    launcher.answers = False  # jobs stay as their tenants left them
    options = {"allowed_roots": (manifest.parent.parent,), "database_url": database_url}
    with running_service(tmp_path / "home", launcher, **options) as service:
        few = settings(max_examples=12, stateful_step_count=15, deadline=None)
        run_state_machine_as_test(lambda: Tenants(service, manifest), settings=few)
