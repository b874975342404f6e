"""The running service against its own OpenAPI document, by schemathesis: as an admin, and as nobody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sample_data import build_digits
from service_stand_ins import RunningService, SubprocessLauncher, running_service, spec_json

from tests.api.schema_run import Known, run_schemathesis
from tests.trained_job import leave_results
from tests.training import noisy_digits

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningService, Known]]:
    """A service with one job that was really trained, so that its results are there to be asked for."""
    folder = tmp_path_factory.mktemp("api")
    build_digits(folder / "shards")
    manifest = folder / "shards" / "manifest.json"
    launcher = SubprocessLauncher()
    try:
        with running_service(folder / "home", launcher, allowed_roots=(folder,)) as running:
            job = running.submit(manifest)
            running.wait_for(job["id"], "SUCCEEDED")
            leave_results(running, job["id"], noisy_digits(folder / "noisy"), folder / "trained")
            example = running.client.get(f"/api/v1/jobs/{job['id']}/examples").json()["items"][0]["example_id"]
            body = {"name": "study", "base": spec_json(manifest), "grid": {"seed": [0, 1]}}
            study = running.client.post("/api/v1/studies", json=body).json()
            yield running, Known(job["id"], study["id"], example, manifest)
    finally:
        launcher.lose_everything()


@pytest.mark.parametrize("who", ["admin", "nobody"])
def test_no_request_breaks_the_contract(
    service: tuple[RunningService, Known], who: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    running, known = service
    num_examples = request.config.getoption("--api-examples")
    token = getattr(running, "token", None) if who == "admin" else None
    found = run_schemathesis(running.url, known, tmp_path, num_examples=num_examples, token=token)
    print(f"{who}: {found.num_cases} cases over {found.num_operations} operations, {found.num_failures} failures")
    assert found.num_failures == 0, found.told
    assert found.num_cases >= 10 * found.num_operations
    assert httpx.get(f"{running.url}/healthz", trust_env=False).is_success
