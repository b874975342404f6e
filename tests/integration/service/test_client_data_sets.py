"""Data sets by the client, sync and async alike, and by the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from awaited_client import AnyClient
from command_line import Hush
from service_stand_ins import RunningService

from service.client import ConflictError, InvalidRequestError, NotFoundError


def test_a_data_set_is_registered_once(client: AnyClient, manifest: Path) -> None:
    made = client.register_data_set("digits", str(manifest))
    assert (made.name, made.manifest, made.check) == ("digits", str(manifest), None)
    assert made.num_examples == sum(split.num_examples for split in made.splits.values()) > 0
    assert [one.name for one in client.data_sets()] == ["digits"]
    assert client.data_set("digits") == made
    with pytest.raises(ConflictError, match="digits"):
        client.register_data_set("digits", str(manifest))
    with pytest.raises(InvalidRequestError, match="manifest"):
        client.register_data_set("none", "/nowhere/manifest.json")
    with pytest.raises(NotFoundError):
        client.check_data_set("none")


def test_by_the_command_line(service: RunningService, manifest: Path) -> None:
    folder = manifest.parent.parent / "set"
    shutil.copytree(manifest.parent, folder)
    hush = Hush(service.url, service.token)
    code, out, err = hush("data-set", "register", "digits", str(folder / "manifest.json"))
    assert (code, err) == (0, ""), err
    assert "10 classes" in out
    assert "none yet" in hush("data-set", "list")[1]
    code, out, _ = hush("data-set", "check", "digits", "--json")
    assert (code, json.loads(out)["check"]["status"]) == (0, "ok")
    with next(folder.glob("train-*.tar")).open("r+b") as shard:
        shard.truncate(1000)
    code, out, _ = hush("data-set", "check", "digits")
    assert code == 1
    assert "problems" in out
    assert ".tar" in out
    assert "problems" in hush("data-set", "show", "digits")[1]
