"""A spare on a real Ray: the ranks that waited train the job, and die with their driver as any other ranks do."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from marked_processes import wait_until
from pydantic import SecretStr
from service_stand_ins import RunningService, running_service

from service.cluster.ray_launcher import RayLauncher
from service.cluster.spares import Spare, Spares
from service.cluster.warm_launcher import WarmLauncher
from service.embedded.local_servers import LocalServer
from trainer.handover import handed_over

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]


@pytest.fixture
def service(local_ray: LocalServer, tmp_path: Path, manifest: Path) -> Iterator[RunningService]:
    ray = RayLauncher(local_ray.url, Path(sys.executable), SecretStr(local_ray.token or ""))
    warm = WarmLauncher(ray, Path(sys.executable), Spares(tmp_path / "spares"))
    warm.keep()
    with running_service(tmp_path / "home", warm, allowed_roots=(manifest.parent.parent,)) as running:
        yield running


def small(manifest: Path, epochs: int) -> dict[str, Any]:
    return {
        "data": {"manifest": str(manifest), "batch_size": 64, "image_size": 8, "augmentation": "none"},
        "schedule": {"epochs": epochs, "max_steps_per_epoch": 4},
        "label_noise": {"num_examples": 64, "num_mc_samples": 2},
    }


def pid_at(folder: Path, moment: str) -> int | None:
    """The process that reached a moment first; None if none has."""
    timeline = folder / "timeline.jsonl"
    lines = [json.loads(line) for line in timeline.read_text().splitlines()] if timeline.exists() else []
    return next((line["pid"] for line in lines if line["moment"] == moment), None)


def waiting_spare(folder: Path) -> Spare:
    """The spare, once its ranks wait."""

    def waits() -> bool:
        return any(pid_at(spare.folder, "waiting") for spare in Spares(folder).waiting())

    wait_until(waits, "a spare waits", timeout_s=200)
    [spare] = Spares(folder).waiting()
    return spare


def test_a_job_is_trained_by_the_ranks_that_waited(service: RunningService, manifest: Path, tmp_path: Path) -> None:
    spare = waiting_spare(tmp_path / "spares")
    job = service.submit(manifest, name="warm", **small(manifest, epochs=2))
    done = service.wait_for(job["id"], "SUCCEEDED", "FAILED", timeout_s=100)
    assert (done["state"], done["attempt"]) == ("SUCCEEDED", 1), done["message"]
    run_dir = service.settings.storage_dir / "jobs" / job["id"] / "attempt-1"
    handover = handed_over(spare.folder)
    assert handover is not None
    assert handover.attempt_dir == str(run_dir)
    assert pid_at(run_dir, "first_step") == pid_at(spare.folder, "waiting")
    assert "rank 0 of 1" in (run_dir / "logs" / "rank_0000.log").read_text()


def test_a_spare_whose_driver_is_killed_takes_its_ranks_along_and_the_job_goes_on(
    service: RunningService, manifest: Path, tmp_path: Path
) -> None:
    spare = waiting_spare(tmp_path / "spares")
    job = service.submit(manifest, name="long", **small(manifest, epochs=10_000))
    service.wait_for(job["id"], "RUNNING", timeout_s=100)
    driver, rank = pid_at(spare.folder, "driver"), pid_at(spare.folder, "waiting")
    assert driver is not None
    assert rank is not None
    os.kill(driver, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(rank), "its rank is gone")
    again = service.wait(job["id"], lambda job: (job["state"], job["attempt"]) == ("RUNNING", 2), timeout_s=200)
    assert again["attempt"] == 2
    service.client.post(f"/api/v1/jobs/{job['id']}/cancel")
    assert service.wait_for(job["id"], "CANCELLED", "FAILED", timeout_s=120)["state"] == "CANCELLED"
