"""The copy of a run in a real MLflow store: complete, without duplicates, and never in training's way."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch

from tests.training import ALONE, context_for, digits_spec, noisy_digits, train_alone
from trainer.attempt import run_attempt
from trainer.mlflow_replica import flatten, main
from trainer.replica_process import ReplicaProcess, read_mlflow_run
from trainer.run_folder import RunFolder
from trainer.run_schema import ATTEMPT_FILE, AttemptContext, AttemptResult, JournalEntry, LabelNoiseRecord

pytestmark = [
    pytest.mark.slow,
    # mlflow's own: nothing of ours can be done about them.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that no MLflow has seen."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    manifest = noisy_digits(folder / "digits")
    context = context_for(digits_spec(manifest), folder / "attempt", mlflow_uri="http://127.0.0.1:9")
    (folder / "attempt").mkdir()
    write_context(context)
    train_alone(context)
    return folder / "attempt"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tracking store of our own, its artifacts beside it."""
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{tmp_path}/mlflow.db"


def write_context(context: AttemptContext) -> None:
    (Path(context.run_dir) / ATTEMPT_FILE).write_text(context.model_dump_json())


def journalled(run_dir: Path) -> dict[str, list[tuple[int, float, int]]]:
    series: dict[str, list[tuple[int, float, int]]] = {}
    for line in (run_dir / "journal.jsonl").read_text().splitlines():
        entry = JournalEntry.model_validate_json(line)
        for name, value in entry.metrics.items():
            series.setdefault(name, []).append((entry.step, value, entry.time_ms))
    return series


def stored(client: mlflow.MlflowClient, run_id: str, name: str) -> list[tuple[int, float, int]]:
    history = client.get_metric_history(run_id, name)
    return sorted((metric.step, metric.value, metric.timestamp) for metric in history)


def files(client: mlflow.MlflowClient, run_id: str, folder: str) -> list[str]:
    return sorted(file.path for file in client.list_artifacts(run_id, folder))


def test_replay_copies_everything_once_however_often(run: Path, store: str) -> None:
    (run / "mlflow.json").unlink(missing_ok=True)
    for _ in range(2):
        assert main([str(run), "--mlflow-uri", store]) == 0
    found = read_mlflow_run(run)
    assert found is not None
    client = mlflow.MlflowClient(store)
    info = client.get_run(found.run_id)
    assert (info.info.run_name, info.info.status) == ("digits", "FINISHED")
    assert info.data.tags["hush.job_id"] == "job-1"
    assert info.data.params["method.kind"] == "ivon"
    for name, points in journalled(run).items():
        assert stored(client, found.run_id, name) == points
    assert files(client, found.run_id, "label_noise") == [f"label_noise/epoch_000{n}.json" for n in (1, 2)]
    assert files(client, found.run_id, "examples") == [f"examples/epoch_000{n}.parquet" for n in (1, 2)]
    pictures = [path for path in files(client, found.run_id, "images") if path.endswith(".png")]
    assert [path.split("+")[:3] for path in pictures] == [["images/label_noise", "step", str(n)] for n in (1, 2)]
    local = client.download_artifacts(found.run_id, "label_noise/epoch_0002.json")
    record = LabelNoiseRecord.model_validate_json(Path(local).read_bytes())
    assert record.overall["exact"].num_examples == 150
    assert "model.pt" in files(client, found.run_id, "")


def test_forgotten_run_is_found_again_by_its_job(run: Path, store: str) -> None:
    ids = []
    for _ in range(2):
        (run / "mlflow.json").unlink(missing_ok=True)
        main([str(run), "--mlflow-uri", store])
        ids.append(read_mlflow_run(run))
    assert ids[0] == ids[1]


def test_run_is_followed_while_it_trains(run: Path, tmp_path: Path, store: str) -> None:
    torch.set_num_threads(1)
    spec = AttemptContext.model_validate_json((run / ATTEMPT_FILE).read_bytes()).spec
    context = context_for(spec, tmp_path / "attempt", mlflow_uri=store)
    (tmp_path / "attempt").mkdir()
    write_context(context)
    result = run_attempt(context, ALONE)
    assert result.mlflow_run_id is not None
    assert AttemptResult.model_validate_json((tmp_path / "attempt/result.json").read_bytes()) == result
    client = mlflow.MlflowClient(store)
    assert client.get_run(result.mlflow_run_id).info.status == "FINISHED"
    for name, points in journalled(tmp_path / "attempt").items():
        assert stored(client, result.mlflow_run_id, name) == points


def test_run_of_a_training_that_failed_says_so(run: Path, tmp_path: Path, store: str) -> None:
    main([str(run), "--mlflow-uri", store])  # makes the store's tables, which take longer than a failure waits
    spec = AttemptContext.model_validate_json((run / ATTEMPT_FILE).read_bytes()).spec
    context = context_for(spec, tmp_path / "attempt", job_id="job-2", mlflow_uri=store)
    (tmp_path / "attempt").mkdir()
    write_context(context)
    with pytest.raises(ValueError, match="diverged"), ReplicaProcess(context):
        raise ValueError("diverged")
    found = read_mlflow_run(tmp_path / "attempt")
    assert found is not None
    assert mlflow.MlflowClient(store).get_run(found.run_id).info.status == "FAILED"


def test_absent_server_stops_nothing(run: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    spec = AttemptContext.model_validate_json((run / ATTEMPT_FILE).read_bytes()).spec
    context = context_for(spec, tmp_path / "attempt", mlflow_uri="http://127.0.0.1:9")
    (tmp_path / "attempt").mkdir()
    write_context(context)
    result = run_attempt(context, ALONE)
    assert (result.outcome, result.mlflow_run_id) == ("succeeded", None)


def test_copying_ends_with_its_parent(run: Path, store: str) -> None:
    context = AttemptContext.model_validate_json((run / ATTEMPT_FILE).read_bytes())
    process = ReplicaProcess(context)
    with process:
        process.begin()
        child = process._process
    assert child is not None
    assert child.returncode is not None


def test_parent_that_is_killed_leaves_no_copying_behind(run: Path) -> None:
    program = (
        "import os, sys, pathlib\n"
        "from trainer.run_schema import AttemptContext\n"
        "from trainer.replica_process import ReplicaProcess\n"
        f"context = AttemptContext.model_validate_json(pathlib.Path({str(run / ATTEMPT_FILE)!r}).read_bytes())\n"
        "process = ReplicaProcess(context)\n"
        "process.__enter__()\n"
        "print(process._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    pid = int(done.stdout)
    deadline_s = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and "Z" not in status_of(pid):
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def test_a_run_whose_training_was_killed_says_so(run: Path, store: str) -> None:
    (run / "mlflow.json").unlink(missing_ok=True)
    context = AttemptContext.model_validate_json((run / ATTEMPT_FILE).read_bytes())
    write_context(context.model_copy(update={"mlflow_uri": store}))
    client = mlflow.MlflowClient(store)
    try:
        with ReplicaProcess(context) as process:
            wait_until(lambda: (found := process.run()) is not None and is_connected(client, found.run_id))
            known = process.run()
    finally:
        write_context(context)
    assert known is not None
    info = client.get_run(known.run_id).info
    assert (info.status, info.end_time is not None) == ("KILLED", True)


def is_connected(client: mlflow.MlflowClient, run_id: str) -> bool:
    return "seed" in client.get_run(run_id).data.params


def wait_until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def status_of(pid: int) -> str:
    try:
        return next(
            line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("State:")
        ).split()[1]
    except FileNotFoundError:
        return "Z"


def test_resumed_run_goes_on_in_the_same_mlflow_run(run: Path, store: str) -> None:
    """A copy that had run ahead of the checkpoint does not show its epochs twice."""
    (run / "mlflow.json").unlink(missing_ok=True)
    main([str(run), "--mlflow-uri", store])
    first = read_mlflow_run(run)
    journal = run / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    try:
        # The same epochs again, a little later.
        moved = [json.loads(line) for line in lines]
        journal.write_text("".join(json.dumps({**e, "time_ms": e["time_ms"] + 5000}) + "\n" for e in moved))
        main([str(run), "--mlflow-uri", store])
    finally:
        journal.write_text("".join(lines))
    assert read_mlflow_run(run) == first
    assert first is not None
    client = mlflow.MlflowClient(store)
    assert [step for step, _, _ in stored(client, first.run_id, "train/loss")] == [21, 42]
    assert len(files(client, first.run_id, "images")) == 4


def test_params_are_the_flattened_spec() -> None:
    assert list(flatten({"a": {"b": 1, "c": {}}, "d": (1, 2)})) == [("a.b", 1), ("d", (1, 2))]


def test_attempt_without_a_server_is_told_so(tmp_path: Path) -> None:
    spec = digits_spec(tmp_path / "manifest.json")
    write_context(context_for(spec, tmp_path))
    RunFolder(tmp_path).begin(None, 0)
    done = subprocess.run(
        [sys.executable, "-m", "trainer.mlflow_replica", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    assert done.returncode == 2
    assert "names no MLflow server; give --mlflow-uri" in done.stderr
