"""What every Launcher keeps to: Ray's, on a real local cluster, and the one that other tests use in its place."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr
from service_stand_ins import STAND_IN_PYTHON, SubprocessLauncher

from service.cluster.launcher import CommandLauncher, DriverStatus, Launcher, LauncherUnavailableError, Phase
from service.cluster.ray_launcher import RayLauncher
from service.cluster.spares import Spares
from service.cluster.warm_launcher import WarmLauncher
from service.embedded.local_servers import LocalServer
from trainer.run_schema import AttemptContext

RUNS = {Phase.PENDING, Phase.RUNNING}


SLOW = pytest.mark.slow


@pytest.fixture(params=["subprocess", pytest.param("ray", marks=SLOW)])
def cluster(request: pytest.FixtureRequest) -> Iterator[CommandLauncher]:
    """Launchers that start a driver for each attempt."""
    if request.param == "subprocess":
        local = SubprocessLauncher()
        yield local
        local.lose_everything()
        return
    server = request.getfixturevalue("local_ray")
    remote = RayLauncher(server.url, STAND_IN_PYTHON, SecretStr(server.token))
    yield remote
    remote.close()


@pytest.fixture(params=["cold", "warm"])
def launcher(request: pytest.FixtureRequest, cluster: CommandLauncher, tmp_path: Path) -> Iterator[Launcher]:
    """Each of them alone, and with a spare that the test's attempt is handed to."""
    if request.param == "cold":
        yield cluster
        return
    warm = WarmLauncher(cluster, STAND_IN_PYTHON, Spares(tmp_path / "spares"))
    warm.keep_once()
    [spare] = Spares(tmp_path / "spares").waiting()
    wait_until(warm, spare.id, {Phase.RUNNING})
    yield warm
    for waiting in Spares(tmp_path / "spares").waiting():
        Spares(tmp_path / "spares").hand_over(waiting.id, None)


def prepared(tmp_path: Path, behaviour: str) -> tuple[str, Path]:
    """A submission id of its own, and the folder of an attempt that nobody listens to."""
    folder = tmp_path / "attempt 1"
    folder.mkdir()
    spec = {"name": behaviour, "data": {"manifest": "/m"}, "schedule": {"epochs": 1}}
    context = {"job_id": "job", "attempt": 1, "spec": spec, "run_dir": str(folder)}
    (folder / "attempt.json").write_text(AttemptContext.model_validate(context).model_dump_json())
    return f"job-{tmp_path.name}-a1", folder


def wait_until(launcher: Launcher, name: str, phases: set[Phase], timeout_s: float = 60) -> DriverStatus:
    deadline = time.monotonic() + timeout_s
    while (status := launcher.status(name)).phase not in phases:
        assert time.monotonic() < deadline, status
        time.sleep(0.1)
    return status


def test_machines(launcher: Launcher) -> None:
    [node] = launcher.nodes()
    assert (node.num_cpus, node.num_gpus) == (2, 0)


def test_a_driver_runs_to_its_end(launcher: Launcher, tmp_path: Path) -> None:
    name, folder = prepared(tmp_path, "completes")
    launcher.submit(name, folder)
    wait_until(launcher, name, {Phase.SUCCEEDED})
    assert json.loads((folder / "seen.json").read_text())["argv"] == [str(folder)]
    assert (folder / "result.json").exists()


def test_a_failure_tells_its_last_words(launcher: Launcher, tmp_path: Path) -> None:
    name, folder = prepared(tmp_path, "breaks")
    launcher.submit(name, folder)
    status = wait_until(launcher, name, set(Phase) - RUNS)
    assert status.phase is Phase.FAILED
    assert "RuntimeError: the loss is not finite at step 3" in (status.message or "")


def test_a_killed_driver_is_known_as_such(launcher: Launcher, tmp_path: Path) -> None:
    name, folder = prepared(tmp_path, "dies")
    launcher.submit(name, folder)
    assert wait_until(launcher, name, set(Phase) - RUNS).phase is Phase.KILLED


def test_asked_twice_it_starts_one_driver_and_stops_it(launcher: Launcher, tmp_path: Path) -> None:
    name, folder = prepared(tmp_path, "deaf")
    launcher.submit(name, folder)
    launcher.submit(name, folder)
    wait_until(launcher, name, {Phase.RUNNING})
    deadline = time.monotonic() + 60
    while not (drivers := _drivers_of(folder)):
        assert time.monotonic() < deadline, "the driver did not start"
        time.sleep(0.1)
    assert len(drivers) == 1
    launcher.stop(name)
    assert wait_until(launcher, name, set(Phase) - RUNS).phase is Phase.STOPPED
    launcher.stop(name)  # again, after its end
    gone, alive = psutil.wait_procs(drivers, timeout=20)
    assert (len(gone), alive) == (1, [])


def _drivers_of(folder: Path) -> list[psutil.Process]:
    """Processes that are the driver itself, not a shell around it."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        argv = process.info["cmdline"] or []
        if argv[-1:] == [str(folder)] and any(piece.endswith("stand_in_driver.py") for piece in argv):
            found.append(process)
    return found


def test_an_unknown_attempt_is_lost_and_may_be_stopped(launcher: Launcher) -> None:
    assert launcher.status("job-nobody-a1").phase is Phase.LOST
    launcher.stop("job-nobody-a1")


def test_a_cluster_that_is_away_is_not_a_lost_attempt(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    launcher = RayLauncher(f"http://127.0.0.1:{port}", STAND_IN_PYTHON)
    for ask in (launcher.nodes, lambda: launcher.status("x"), lambda: launcher.submit("x", tmp_path)):
        with pytest.raises(LauncherUnavailableError, match="ConnectError"):
            ask()
    launcher.close()


@pytest.mark.slow
def test_without_its_token_ray_is_away(local_ray: LocalServer, tmp_path: Path) -> None:
    launcher = RayLauncher(local_ray.url, STAND_IN_PYTHON, SecretStr("wrong"))
    for ask in (launcher.nodes, lambda: launcher.status("x"), lambda: launcher.submit("x", tmp_path)):
        with pytest.raises(LauncherUnavailableError, match="40"):
            ask()
    launcher.close()
