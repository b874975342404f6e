"""`hush serve` for real: everything on loopback, one server a home, and no process left behind however it ends."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from marked_processes import kill_marked, listening, marked, wait_until
from serving import HUSH, Serving

from service.embedded.home import find_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    serving = Serving(tmp_path)
    yield serving
    serving.clear_up()


def test_a_whole_life(serving: Serving) -> None:
    url = serving.wait_ready()
    outside = [address for address in listening(serving.mark) if not address[0].endswith("127.0.0.1")]
    assert outside == [], "everything listens on loopback only"

    second = serving.run("serve")
    assert second.returncode == 2
    assert second.stderr == (
        f"hush: {serving.home} is already served by process {serving.process.pid} at {url};"
        " stop that one, or choose another --home\n"
    )
    jobs = serving.run("jobs", "--json")
    assert (json.loads(jobs.stdout), jobs.returncode) == ([], 0)
    assert httpx.get(f"{url}/api/v1/jobs", trust_env=False, timeout=30).status_code == 401, "and so does the API"
    assert (serving.home / "server.json").stat().st_mode & 0o777 == 0o600, "whose token is this user's alone"
    ray = json.loads((serving.home / "server.json").read_text())["ray_url"]
    assert httpx.get(f"{ray}/api/jobs/", trust_env=False).status_code == 401, "Ray asks for its token"

    assert serving.end() == 0
    serving.assert_nothing_left()
    after = serving.run("jobs")
    assert (after.returncode, after.stdout) == (2, "")
    assert "hush serve" in after.stderr


def test_other_machines_come_in_with_a_token_only(tmp_path: Path) -> None:
    home = tmp_path / "home"
    argv = [*HUSH, "token", "create", "ops", "--role", "viewer", "--home", str(home)]
    token = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    serving = Serving(tmp_path, "--host", "0.0.0.0")
    try:
        wait_until(lambda: find_server(home) is not None, "the API answers")
        wait_until(lambda: serving.runs("raylet"), "Ray starts")
        server = find_server(home)
        assert server is not None
        port = int(server.url.rpartition(":")[2])
        assert server.url == f"http://127.0.0.1:{port}"
        outside = {address for address in listening(serving.mark) if not address[0].endswith("127.0.0.1")}
        assert outside == {("0.0.0.0", port)}, "the API, and nothing else"

        def status(bearer: str | None) -> int:
            headers = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
            url = f"http://127.0.0.2:{port}/api/v1/tokens"  # by another address than its own
            return httpx.get(url, headers=headers, trust_env=False, timeout=30).status_code

        assert [status(None), status("x"), status(token), status(server.token)] == [401, 401, 403, 200]
        assert serving.end() == 0
        serving.assert_nothing_left()
    finally:
        serving.clear_up()


def test_sigkill_leaves_nothing(serving: Serving) -> None:
    serving.wait_ready()
    assert serving.runs("raylet")
    serving.process.kill()
    serving.process.wait()
    serving.assert_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_ray_starts_leaves_nothing(serving: Serving, number: signal.Signals) -> None:
    wait_until(lambda: serving.runs("ray.scripts.scripts") or serving.runs("gcs_server"), "Ray is starting")
    assert serving.end(number) == 0
    serving.assert_nothing_left()


def test_a_lost_guardian_ends_the_service_with_a_message(serving: Serving) -> None:
    wait_until(lambda: serving.runs("gcs_server"), "Ray is starting")
    (guardian,) = marked(serving.mark, "service.embedded.guardian")
    guardian.kill()
    _, stderr = serving.process.communicate(timeout=90)
    assert serving.process.returncode == 2
    assert "was killed" in stderr
    wait_until(lambda: not marked(serving.mark), lambda: f"still there: {marked(serving.mark)}")


def test_a_ray_head_that_dies_is_started_again(serving: Serving) -> None:
    url = serving.wait_ready()
    kill_marked(serving.mark, "ray.scripts.scripts")
    wait_until(lambda: not httpx.get(f"{url}/readyz", trust_env=False, timeout=30).is_success, "Ray is gone")
    serving.wait_ready()
