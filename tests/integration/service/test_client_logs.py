"""Logs by the client and by the command line."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from awaited_client import AnyClient, Connect
from command_line import Hush
from service_stand_ins import RunningService, SubprocessLauncher, running_service, spec_json

from service.schemas import LogPiece
from trainer.spec import JobSpec

WHOLE = "attempt 1 begins: Grüße\nepoch 1 is done\nepoch 2 is done\n"


def submitted(client: AnyClient, manifest: Path, name: str = "completes") -> str:
    return client.submit(JobSpec.model_validate(spec_json(manifest, name=name))).id


def ended(client: AnyClient, manifest: Path) -> str:
    job_id = submitted(client, manifest)
    assert list(client.follow(job_id))
    return job_id


def test_a_log_is_listed_read_and_followed(client: AnyClient, manifest: Path) -> None:
    job_id = ended(client, manifest)
    [log] = client.logs(job_id)
    assert (log.attempt, log.name, log.size_bytes) == (1, "rank_0000", len(WHOLE.encode()))
    assert client.log_text(job_id, 1) == WHOLE
    assert client.log_text(job_id, 1, tail_lines=1) == "epoch 2 is done\n"
    pieces = list(client.follow_log(job_id))
    assert "".join(piece.text for piece in pieces) == WHOLE
    assert {(piece.attempt, piece.name) for piece in pieces} == {(1, "rank_0000")}


def test_a_log_is_followed_over_attempts_and_a_restart(
    tmp_path: Path, launcher: SubprocessLauncher, manifest: Path, connect: Connect
) -> None:
    roots = (manifest.parent.parent,)
    pieces: list[LogPiece] = []
    begun = threading.Event()

    def follow(client: AnyClient, job_id: str) -> None:
        for piece in client.follow_log(job_id):
            pieces.append(piece)
            begun.set()

    with running_service(tmp_path / "home", launcher, allowed_roots=roots) as first:
        client = connect(first.url, first.token)
        job_id = submitted(client, manifest, "waits-once")
        following = threading.Thread(target=follow, args=(connect(first.url, first.token), job_id))
        following.start()
        assert begun.wait(30)
    port = int(first.url.rpartition(":")[2])
    with running_service(tmp_path / "home", launcher, port=port, allowed_roots=roots):
        launcher.lose_everything()
        following.join(30)
        assert not following.is_alive()
    text = "".join(piece.text for piece in pieces)
    assert text == "attempt 1 begins: Grüße\nattempt 2 begins: Grüße\nepoch 1 is done\nepoch 2 is done\n"


class TestCommand:
    def test_of_a_job_that_has_ended(self, service: RunningService, client: AnyClient, manifest: Path) -> None:
        hush = Hush(service.url, service.token)
        job_id = ended(client, manifest)
        assert hush("logs", "completes")[:2] == (0, WHOLE)
        assert hush("logs", job_id, "--tail", "1")[1] == "epoch 2 is done\n"
        assert hush("logs", job_id, "--follow", "--attempt", "1")[1] == WHOLE
        assert json.loads(hush("logs", job_id, "--json")[1]) == {"attempt": 1, "name": "rank_0000", "text": WHOLE}
        assert "rank_0000" in hush("logs", job_id, "--list")[1]
        assert [log["name"] for log in json.loads(hush("logs", job_id, "--list", "--json")[1])] == ["rank_0000"]
        lines = hush("logs", job_id, "--follow", "--json")[1].splitlines()
        assert "".join(json.loads(line)["text"] for line in lines) == WHOLE

    def test_what_is_not_there(self, service: RunningService, client: AnyClient, manifest: Path) -> None:
        hush = Hush(service.url, service.token)
        job_id = ended(client, manifest)
        assert hush("logs", job_id, "--driver")[2].startswith("hush: there is no log driver of this job yet")
        assert "num_workers" in hush("logs", job_id, "--rank", "7", "--follow")[2]
        code, out, err = hush("logs", job_id, "--driver", "--attempt", "3")
        assert (code, out, err.count("\n")) == (2, "", 1)
        for argv in (["--driver", "--rank", "1"], ["--follow", "--tail", "1"]):
            assert hush("logs", job_id, *argv)[0] == 2
