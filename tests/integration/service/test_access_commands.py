"""`hush token`, `hush tenant` and `hush api`: made on the database, good at a service that really listens."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from marked_processes import wait_until
from service_stand_ins import RunningService
from typer.testing import CliRunner

from service.cli import app
from service.jobs.records import TenantLimits
from service.store.database import open_engine
from service.store.tenants import Tenants

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hush(service: RunningService) -> Run:
    """Commands on the database of a service."""

    def run(*argv: str) -> tuple[int, str, str]:
        env = {"HUSH_HOME": str(service.settings.home), "COLUMNS": "160"}
        result = CliRunner().invoke(app, list(argv), env=env)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout, result.stderr

    return run


def test_a_token_that_was_made_by_hand(hush: Run, service: RunningService) -> None:
    code, out, err = hush("token", "create", "alice", "--role", "viewer", "--tenant", "vision", "--expires", "12h")
    assert (code, out.count("\n")) == (0, 1), "the token alone, for $(...)"
    assert "viewer of tenant vision, good until 20" in err
    with service.client_of(out.strip()) as alice:
        assert alice.get("/api/v1/whoami").json() == {"tenant": "vision", "role": "viewer", "name": "alice"}
        (made,) = json.loads(hush("token", "list", "--tenant", "vision", "--json")[1])
        assert (made["name"], made["role"], made["revoked_at"]) == ("alice", "viewer", None)
        assert out.strip() not in hush("token", "list", "--json")[1]
        assert hush("token", "revoke", made["id"])[:2] == (0, "alice of tenant vision is revoked\n")
        assert alice.get("/api/v1/whoami").status_code == 401
    assert "no longer: revoked" in hush("token", "list")[1]
    made = json.loads(hush("token", "create", "bob", "--expires", "never", "--json")[1])
    assert (made["role"], made["tenant"], made["expires_at"]) == ("submitter", "default", None)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("token", "create", "a/b"), "NAME = 'a/b': must match"),
        (("token", "create", "a", "--tenant", "A"), "tenant = 'A': must match"),
        (("token", "create", "a", "--expires", "soon"), "--expires 'soon' must be never or like"),
        (("token", "create", "a", "--database-url", "sqlite:////proc/nothing/hush.db"), "/proc/nothing"),
        (("token", "list", "--database-url", "nonsense"), "the database cannot be used"),
        (("token", "list", "--database-url", "postgresql://nobody@127.0.0.1:9/hush"), "the database cannot be used"),
        (("token", "revoke", "x"), "there is no token of the id 'x'"),
        (("tenant", "set", "a", "--max-workers", "10000000000"), "--max-workers 10000000000: must be a whole number"),
        (("tenant", "set", "a", "--max-workers", "0"), "--max-workers 0: must be a whole number from 1, or none"),
        (("tenant", "set", "a", "--max-running-jobs", "9" * 5000), "must be a whole number"),
        (("tenant", "set", "A"), "tenant = 'A': must match"),
    ],
)
def test_what_cannot_be_is_one_line(hush: Run, argv: tuple[str, ...], words: str) -> None:
    code, out, err = hush(*argv)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_limits_of_a_tenant(hush: Run, service: RunningService) -> None:
    assert hush("tenant", "set", "vision", "--max-running-jobs", "2")[0] == 0
    assert hush("tenant", "set", "vision", "--max-workers", "8")[0] == 0
    engine = open_engine(service.settings.database)
    assert Tenants(engine).limits()["vision"] == TenantLimits(2, 8)
    engine.dispose()
    assert hush("tenant", "set", "vision", "--max-running-jobs", "none")[1] == (
        "vision: max_running_jobs as the settings say, max_workers 8\n"
    )
    listed = json.loads(hush("tenant", "list", "--json")[1])
    assert {"name": "vision", "max_running_jobs": None, "max_workers": 8} in listed


class Replicas:
    """`hush api` in processes of their own, on one database."""

    def __init__(self, database_url: str, home: Path) -> None:
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("HUSH_")}
        self.env |= {
            "HUSH_DATABASE_URL": database_url,
            "HUSH_HOME": str(home),
            "HUSH_RAY_ADDRESS": "http://127.0.0.1:9",
        }
        self.running: list[subprocess.Popen[str]] = []

    def hush(self, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "service.cli", *argv]
        return subprocess.run(command, env=self.env | env, capture_output=True, text=True, check=False, timeout=60)

    def start(self, host: str) -> str:
        """Address of a new one, once it answers."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        argv = [sys.executable, "-m", "service.cli", "api", "--host", host, "--port", str(port)]
        process = subprocess.Popen(argv, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.running.append(process)
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            assert process.poll() is None, process.communicate()[0]
            try:
                return httpx.get(f"{url}/healthz", trust_env=False, timeout=5).is_success
            except httpx.TransportError:
                return False

        wait_until(answers, "the API answers")
        return url

    def end(self) -> list[str]:
        """Ask all to end in good order; what they said."""
        for process in self.running:
            process.send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=60)[0] for process in self.running]
        self.running.clear()
        return said


@pytest.fixture
def replicas(postgres_url: str, tmp_path: Path) -> Iterator[Replicas]:
    replicas = Replicas(postgres_url, tmp_path / "home")
    yield replicas
    replicas.end()


@pytest.mark.slow
def test_the_api_lets_in_other_machines_once_somebody_has_a_token(replicas: Replicas) -> None:
    refused = replicas.hush("api", "--host", "0.0.0.0")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--host 0.0.0.0 lets other machines in: nobody has a token" in refused.stderr
    token = replicas.hush("token", "create", "ops", "--role", "admin").stdout.strip()
    weak = replicas.hush("api", "--host", "0.0.0.0", HUSH_RAY_TOKEN="changeme")
    assert weak.returncode == 2
    assert "HUSH_RAY_TOKEN holds a well-known secret" in weak.stderr
    assert "changeme" not in weak.stderr

    first, second = replicas.start("0.0.0.0"), replicas.start("0.0.0.0")
    everywhere = {c.laddr.ip for c in psutil.Process(replicas.running[0].pid).net_connections() if c.status == "LISTEN"}
    assert everywhere == {"0.0.0.0"}
    headers = {"Authorization": f"Bearer {token}"}
    ask = {"trust_env": False, "timeout": 30}
    assert httpx.get(f"{first}/api/v1/jobs", **ask).status_code == 401
    made = httpx.post(f"{first}/api/v1/tokens", json={"name": "ci"}, headers=headers, **ask).json()
    mine = {"Authorization": f"Bearer {made['token']}"}
    assert httpx.get(f"{second}/api/v1/whoami", headers=mine, **ask).json()["name"] == "ci", "replicas know the same"
    assert httpx.delete(f"{second}/api/v1/tokens/{made['id']}", headers=headers, **ask).status_code == 200
    assert httpx.get(f"{first}/api/v1/whoami", headers=mine, **ask).status_code == 401
    taken = replicas.hush("api", "--port", first.rpartition(":")[2])
    assert taken.returncode == 2
    assert "in use" in taken.stderr
    for said in replicas.end():
        assert "Application shutdown complete" in said
        assert "Traceback" not in said


def test_wrong_settings_are_a_line_each(tmp_path: Path) -> None:
    wrong = {"HUSH_OIDC_ISSUER": "http://id.example.org", "HUSH_RATE_LIMIT_PER_MINUTE": "many"}
    done = Replicas(f"sqlite:///{tmp_path}/hush.db", tmp_path).hush("api", **wrong)
    assert done.returncode == 2
    assert "HUSH_OIDC_ISSUER: " in done.stderr
    assert "HUSH_RATE_LIMIT_PER_MINUTE: " in done.stderr
    assert "Traceback" not in done.stderr
