"""Results of a job that was really trained, over REST and by the client: examples, their pictures, the model."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from command_line import Hush
from PIL import Image
from pyarrow import csv
from service_stand_ins import RunningService, SubprocessLauncher, running_service
from sklearn.datasets import load_digits

from service.client import Client, NotFoundError
from service.results.export import BusyError, Exports, pieces
from tests.trained_job import leave_results
from tests.training import noisy_digits
from trainer.run_schema import EXAMPLE_COLUMNS, RESULT_FILE

pytestmark = pytest.mark.slow


@dataclass
class Trained:
    """A service with a job, and what its attempt left."""

    service: RunningService
    job_id: str
    manifest: Path
    run_dir: Path

    def get(self, path: str, **params: str | int) -> httpx.Response:
        return self.service.client.get(f"/api/v1/jobs/{self.job_id}/{path}", params=params)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("results")
    manifest = noisy_digits(folder / "digits")
    launcher = SubprocessLauncher()
    try:
        with running_service(folder / "home", launcher, allowed_roots=(folder,)) as service:
            job = service.submit(manifest)
            service.wait_for(job["id"], "SUCCEEDED")
            attempt = leave_results(service, job["id"], manifest, folder / "trained")
            yield Trained(service, job["id"], manifest, attempt)
    finally:
        launcher.lose_everything()


@pytest.fixture
def client(trained: Trained) -> Iterator[Client]:
    with Client(trained.service.url, trained.service.token) as made:
        yield made


def test_an_example_over_the_epochs(trained: Trained, client: Client) -> None:
    suspect = next(client.examples(trained.job_id))
    found = client.example(trained.job_id, suspect.example_id)
    epochs = len(client.label_noise(trained.job_id))
    assert epochs > 1
    assert [entry.epoch for entry in found.history] == list(range(1, epochs + 1))
    assert [entry.num_records for entry in found.history] == list(range(1, epochs + 1))
    assert found.history[-1].model_dump(exclude={"epoch"}) == suspect.model_dump()
    assert trained.service.client.get(found.links.self).json() == found.model_dump(mode="json")
    with pytest.raises(NotFoundError, match="no example 'digit-x'"):
        client.example(trained.job_id, "digit-x")


def test_the_picture_of_an_example_is_the_one_that_was_trained_on(trained: Trained, client: Client) -> None:
    example = next(client.examples(trained.job_id))
    answer = trained.service.client.get(client.example(trained.job_id, example.example_id).links.image)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.content == client.picture(trained.job_id, example.example_id)
    pixels = np.asarray(Image.open(io.BytesIO(answer.content)).convert("L"), dtype=np.float64)
    scan = load_digits().images[int(example.example_id.removeprefix("digit-"))]
    assert np.corrcoef(pixels.ravel(), scan.ravel())[0, 1] > 0.99
    for stranger in ("digit-x", "a/b", "../x", "x" * 900):
        with pytest.raises(NotFoundError, match="no example"):
            client.picture(trained.job_id, stranger)


def test_a_picture_whose_shard_is_gone_or_damaged(trained: Trained, client: Client) -> None:
    shards = sorted(trained.manifest.parent.rglob("*.tar"))
    kept = {shard: shard.read_bytes() for shard in shards}
    example = next(client.examples(trained.job_id)).example_id
    try:
        for shard, content in kept.items():
            shard.write_bytes(bytes(byte ^ 1 for byte in content))
        with pytest.raises(NotFoundError, match="cannot be read"):
            client.picture(trained.job_id, example)
        for shard in shards:
            shard.unlink()
        with pytest.raises(NotFoundError, match="cannot be read"):
            client.picture(trained.job_id, example)
    finally:
        for shard, content in kept.items():
            shard.write_bytes(content)
    assert client.picture(trained.job_id, example)


def test_another_tenant_sees_nothing(trained: Trained, client: Client) -> None:
    example = next(client.examples(trained.job_id)).example_id
    token = trained.service.new_token(tenant="other")
    with trained.service.client_of(token) as other:
        for path in (
            "model",
            "model/weights",
            f"examples/{example}",
            f"examples/{example}/image",
            "examples?format=csv",
        ):
            assert other.get(f"/api/v1/jobs/{trained.job_id}/{path}").status_code == 404


def test_examples_as_a_file(trained: Trained, client: Client) -> None:
    rows = list(client.examples(trained.job_id, sort="ambiguity"))
    names = [*EXAMPLE_COLUMNS, "given_class", "clean_class", "predicted_class"]
    answer = trained.get("examples", format="csv", sort="ambiguity")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"].endswith('.csv"')
    table = csv.read_csv(io.BytesIO(answer.content))
    assert table.column_names == names
    assert table["example_id"].to_pylist() == [row.example_id for row in rows]
    assert table["clean_class"].cast("string").to_pylist() == [row.clean_class for row in rows]
    parquet = pq.read_table(io.BytesIO(client.export_examples(trained.job_id, "parquet", sort="ambiguity")))
    assert parquet.column_names == names
    assert parquet["loss"].to_pylist() == [row.loss for row in rows]
    some = pq.read_table(io.BytesIO(client.export_examples(trained.job_id, "parquet", given_label=3, epoch=1)))
    assert set(some["given_label"].to_pylist()) == {3}
    assert trained.get("examples", format="xml").status_code == 422
    assert trained.get("examples", format="csv", epoch=99).status_code == 404


def test_the_model(trained: Trained, client: Client) -> None:
    found = client.model(trained.job_id)
    content = client.weights(trained.job_id)
    assert (found.attempt, len(found.classes), found.size_bytes) == (1, 10, len(content))
    assert found.epoch == len(client.label_noise(trained.job_id))
    assert found.sha256 == hashlib.sha256(content).hexdigest()
    assert Path(found.path).read_bytes() == content
    assert found.checkpoint is not None
    assert Path(found.checkpoint).exists()
    state = torch.load(io.BytesIO(content), weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    for wanted, status in (("bytes=0-3", 206), (f"bytes={len(content)}-", 416), ("lines=1-2", 200)):
        part = trained.service.client.get(found.links.weights, headers={"Range": wanted})
        assert part.status_code == status, wanted
        if status == 206:
            assert part.content == content[:4]
        if status == 416:
            assert part.headers["content-type"] == "application/problem+json"


def test_the_commands(trained: Trained, client: Client, tmp_path: Path) -> None:
    hush = Hush(trained.service.url, trained.service.token)
    example = next(client.examples(trained.job_id))
    code, out, err = hush("example", trained.job_id, example.example_id, "--image", str(tmp_path / "a.png"))
    assert code == 0
    assert example.given_class in out
    assert len(out.strip().splitlines()) == 2 + len(client.label_noise(trained.job_id))
    assert "a.png" in err
    assert (tmp_path / "a.png").read_bytes() == client.picture(trained.job_id, example.example_id)
    code, out, _ = hush("model", trained.job_id, "--output", str(tmp_path / "model.pt"))
    assert code == 0
    assert client.model(trained.job_id).path in out
    assert (tmp_path / "model.pt").read_bytes() == client.weights(trained.job_id)
    assert json.loads(hush("model", trained.job_id, "--json")[1])["attempt"] == 1
    assert hush("examples", trained.job_id, "--output", str(tmp_path / "all.csv"))[0] == 0
    assert csv.read_csv(tmp_path / "all.csv").num_rows == len(list(client.examples(trained.job_id)))
    code, _, err = hush("examples", trained.job_id, "--output", str(tmp_path / "all.xls"))
    assert (code, "must end in .csv or .parquet" in err) == (2, True)
    assert hush("example", trained.job_id, "digit-x")[0] == 2
    for command in (("model",), ("example", example.example_id, "--image"), ("examples",)):
        name, *rest = command
        option = rest or ["--output"]
        code, _, err = hush(name, trained.job_id, *option, str(tmp_path / "none" / "a.csv"))
        assert (code, "there is no folder" in err) == (2, True), command


def test_damaged_results_are_said_to_be_damaged(trained: Trained, client: Client) -> None:
    example = next(client.examples(trained.job_id)).example_id
    newest = max((trained.run_dir / "examples").glob("*.parquet"))
    first = newest.with_name("epoch_0001.parquet")
    evaluation = max((trained.run_dir / "evaluation").glob("*.json"))
    kept = {path: path.read_bytes() for path in (newest, first, evaluation)}
    try:
        first.write_bytes(kept[first][:-20])
        assert next(entry.epoch for entry in client.example(trained.job_id, example).history) == 2
        newest.write_bytes(b"")
        for output in ("json", "csv"):
            answer = trained.get("examples", format=output)
            assert answer.status_code == 404
            assert newest.name in answer.json()["detail"]
        evaluation.write_text("{}")
        assert "is damaged" in trained.get("evaluation").json()["detail"]
        assert client.model(trained.job_id).classes == []
    finally:
        for path, content in kept.items():
            path.write_bytes(content)


def test_tables_of_an_older_version_lack_columns(trained: Trained, client: Client) -> None:
    newest = max((trained.run_dir / "examples").glob("*.parquet"))
    kept = newest.read_bytes()
    try:
        pq.write_table(pq.read_table(newest).drop_columns(["epsilon_training"]), newest)
        example = next(client.examples(trained.job_id))
        assert example.epsilon_training is None
        assert client.example(trained.job_id, example.example_id).history[-1].epsilon_training is None
        assert client.export_examples(trained.job_id, "csv")
    finally:
        newest.write_bytes(kept)


def test_a_shard_that_leads_out_of_what_is_allowed(trained: Trained, client: Client, tmp_path: Path) -> None:
    example = next(client.examples(trained.job_id)).example_id
    shards = sorted(trained.manifest.parent.rglob("*.tar"))
    try:
        for shard in shards:
            shard.rename(tmp_path / shard.name)
            shard.symlink_to(tmp_path / shard.name)
        with pytest.raises(NotFoundError, match="HUSH_ALLOWED_ROOTS"):
            client.picture(trained.job_id, example)
    finally:
        for shard in shards:
            shard.unlink()
            (tmp_path / shard.name).rename(shard)


def test_few_files_are_made_at_a_time() -> None:
    exports, table = Exports(), pa.table({"a": [1]})

    def content(depth: int) -> bytes:
        """Of a file while whose table is read `depth` others are made, one within the other."""
        made = exports.make(lambda: table if depth == 0 else (content(depth - 1), table)[1], "csv")
        assert made is not None
        return b"".join(pieces(made))

    assert content(1) == b'"a"\n1\n'
    with pytest.raises(BusyError):
        content(2)
    assert content(1), "what failed keeps no place"


def test_a_model_that_the_journal_does_not_name_is_none(trained: Trained, client: Client) -> None:
    journal = trained.run_dir / "journal.jsonl"
    kept = journal.read_bytes()
    try:
        journal.write_bytes(b"".join(line for line in kept.splitlines(True) if b"model.pt" not in line))
        with pytest.raises(NotFoundError, match="not there yet"):
            client.model(trained.job_id)
    finally:
        journal.write_bytes(kept)


def test_before_there_is_a_model(trained: Trained, client: Client) -> None:
    job = trained.service.submit(trained.manifest, name="waits")
    trained.service.wait_for(job["id"], "RUNNING")
    with pytest.raises(NotFoundError, match="not there yet"):
        client.model(job["id"])
    with pytest.raises(NotFoundError, match="not there yet"):
        client.weights(job["id"])
    trained.service.client.post(f"/api/v1/jobs/{job['id']}/cancel")
    (trained.run_dir / RESULT_FILE).rename(trained.run_dir / "aside")
    try:
        assert client.model(trained.job_id).sha256 is None
    finally:
        (trained.run_dir / "aside").rename(trained.run_dir / RESULT_FILE)
