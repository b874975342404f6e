"""Stands in for `python -m trainer.ray_entry <attempt dir>`: trains nothing, but speaks the trainer's protocol.

What it does is the job's name: completes, breaks, waits, deaf (ignores a stop), no-result, torn, dies; dies-once and
waits-once do so in the first attempt and complete in the next. diverges and loses-a-rank write down why they fail, the
latter in the first attempt only. hangs falls silent, but lives. learns tells how it does on val and test, the better
the higher its learning rate and its seed, and hears a stop after each epoch; with a rate below a half it waits after
the third for being stopped. Numbers that a study adds say nothing.
With `--spare DIR RANKS` it waits for the attempt that it is handed, and goes on as the driver of that.
It is started by tests/stand_in_python.sh, which takes the place of the interpreter in the launcher's fixed command.
"""

import hashlib
import http.client
import json
import os
import re
import signal
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path


def main(run_dir: Path) -> None:
    context = json.loads((run_dir / "attempt.json").read_text())
    behaviour = re.sub(r"-\d+$", "", context["spec"]["name"])
    attempt, num_epochs = context["attempt"], context["spec"]["schedule"]["epochs"]
    with (run_dir / "starts.txt").open("a") as starts:
        starts.write(f"{os.getpid()}\n")
    (run_dir / "seen.json").write_text(json.dumps({"resume_dirs": context["resume_dirs"], "argv": sys.argv[1:]}))
    if behaviour == "breaks":
        raise RuntimeError("the loss is not finite at step 3")
    if behaviour == "no-result":
        return
    say(run_dir, f"attempt {attempt} begins: Grüße\n")
    action = beat(context, 0)
    if behaviour == "diverges" or (behaviour == "loses-a-rank" and attempt == 1):
        fail(run_dir, is_final=behaviour == "diverges")
    while behaviour == "hangs":
        time.sleep(1)
    if behaviour == "dies" or (behaviour == "dies-once" and attempt == 1):
        beat(context, 1)
        os.kill(os.getpid(), signal.SIGKILL)
    while behaviour in {"waits", "deaf"} or (behaviour == "waits-once" and attempt == 1):
        time.sleep(0.05)
        action = beat(context, 0)
        if action == "stop" and behaviour == "waits":
            finish(run_dir, context, "stopped", 0)
        if action in {"stop", "abort"} and behaviour == "waits":
            return
    train(run_dir, context, num_epochs, learns=behaviour == "learns")


def train(run_dir: Path, context: dict, num_epochs: int, *, learns: bool) -> None:
    for epoch in range(1, num_epochs + 1):
        with (run_dir / "journal.jsonl").open("a") as journal:
            entry = {"time_ms": 1000 + epoch, "step": 10 * epoch, "epoch": epoch, "metrics": metrics_of(epoch)}
            journal.write(json.dumps(entry) + "\n")
        say(run_dir, f"epoch {epoch} is done\n")
        if learns:
            evaluate(run_dir, context, epoch)
        action = beat(context, epoch)
        while learns and epoch == 3 and context["spec"]["method"]["lr"] < 0.5 and action == "continue":
            time.sleep(0.05)
            action = beat(context, epoch)
        if learns and action == "stop":
            finish(run_dir, context, "stopped", epoch)
            return
    finish(run_dir, context, "succeeded", num_epochs)


def metrics_of(epoch: int) -> dict:
    return {"train/accuracy": 1 - 1 / (epoch + 1), "train/loss": 1 / epoch}


def fail(run_dir: Path, *, is_final: bool) -> None:
    """Write down why, as a rank does, and end."""
    failure = {
        "reason": "non_finite_loss" if is_final else "worker_lost",
        "message": "the loss is nan" if is_final else "rank 1 was killed",
        "traceback": "Traceback (most recent call last):\nFloatingPointError: nan",
        "rank": 1,
        "is_final": is_final,
    }
    (run_dir / "failure.json").write_text(json.dumps(failure))
    sys.exit(1)


def say(run_dir: Path, text: str) -> None:
    """Write to the log of rank 0."""
    (run_dir / "logs").mkdir(exist_ok=True)
    with (run_dir / "logs" / "rank_0000.log").open("a") as log:
        log.write(text)


def accuracy(context: dict, epoch: int) -> float:
    spec = context["spec"]
    return (spec["method"]["lr"] + spec["seed"] / 100) * epoch / spec["schedule"]["epochs"]


def evaluate(run_dir: Path, context: dict, epoch: int) -> None:
    figures = {"labels": "given", "num_examples": 100, "nll": 1 / epoch, "brier": 0.5, "ece": 0.25}
    tables = {"reliability": [], "confusion": [[50, 0], [0, 50]]}
    splits = ["val"] + ["test"] * (epoch == context["spec"]["schedule"]["epochs"])
    report = {
        "epoch": epoch,
        "step": 10 * epoch,
        "classes": ["a", "b"],
        "splits": {s: {"split": s, "accuracy": accuracy(context, epoch), **figures, **tables} for s in splits},
    }
    (run_dir / "evaluation").mkdir(exist_ok=True)
    (run_dir / f"evaluation/epoch_{epoch:04d}.json").write_text(json.dumps(report))


def beat(context: dict, epoch: int) -> str:
    """Post a heartbeat after `epoch` finished ones; end when fenced off."""
    if context["heartbeat_url"] is None:
        return "continue"
    metrics = metrics_of(epoch) | {"val_given/accuracy": accuracy(context, epoch)} if epoch else {}
    epochs = [{"epoch": epoch, "metrics": metrics}] if epoch else []
    progress = {"phase": "training", "epoch": epoch, "num_epochs": 2, "step": 10 * epoch, "num_steps": 20}
    body = {"progress": progress, "finished_epochs": epochs, "mlflow_run_id": "r1", "mlflow_experiment_id": "e1"}
    headers = {"Authorization": f"Bearer {context['heartbeat_token']}", "Content-Type": "application/json"}
    request = urllib.request.Request(context["heartbeat_url"], json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return json.load(reply)["action"]
    except urllib.error.HTTPError as error:
        sys.exit(f"fenced off: {error.code}")
    except (OSError, http.client.HTTPException):  # nobody answers, or was killed in the middle of the answer
        return "continue"


def finish(run_dir: Path, context: dict, outcome: str, num_epochs: int) -> None:
    (run_dir / "model.pt").write_bytes(b"weights")
    digest = hashlib.sha256(b"other" if context["spec"]["name"] == "torn" else b"weights").hexdigest()
    result = {
        "job_id": context["job_id"],
        "attempt": context["attempt"],
        "outcome": outcome,
        "num_epochs": num_epochs,
        "num_steps": 10 * num_epochs,
        "metrics": {},
        "files": {"model.pt": digest},
    }
    (run_dir / "aside").write_text(json.dumps(result))
    (run_dir / "aside").rename(run_dir / "result.json")


def wait_as_spare(folder: Path) -> None:
    """Become the driver of what is handed over; end if that is nothing."""
    while not (folder / "handover.json").exists():
        time.sleep(0.01)
    attempt_dir = json.loads((folder / "handover.json").read_text())["attempt_dir"]
    if attempt_dir is not None:
        os.execv(sys.executable, [sys.executable, "-I", __file__, attempt_dir])


if __name__ == "__main__":
    wait_as_spare(Path(sys.argv[2])) if sys.argv[1] == "--spare" else main(Path(sys.argv[1]))
