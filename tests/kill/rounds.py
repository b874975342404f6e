"""One round: jobs are handed in, processes are killed, and what must hold afterwards is looked at."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from marked_processes import marked
from webhook_receiver import Receiver

from service.jobs.states import TERMINAL_STATES
from tests.kill.cluster import Api, RayCluster, poll
from tests.kill.plan import RAY_VICTIMS, Kill, Round
from trainer.run_schema import EVALUATION_DIR, JOURNAL_FILE, RESULT_FILE, epoch_file

END_S = 420
"""A job that has not ended by then, after all kills, is taken for one that never will."""
LEFT_S = 60
"""Seconds that a dead attempt's processes have to go."""
ATTEMPT_PROCESSES = ("trainer.ray_entry", "ray::Rank")


@dataclass
class World:
    """What the rounds of one database run on."""

    mark: str
    cluster: RayCluster
    replicas: list[Api]
    storage: Path
    manifest: Path
    token: str
    receiver: Receiver
    has_webhook: bool = False

    def keep_up(self) -> None:
        """Start again what was killed, as an operator's supervisor would."""
        self.cluster.keep_up()
        for api in self.replicas:
            api.keep_up()

    def num_starts(self) -> int:
        """How often an API process was started."""
        return sum(api.num_starts for api in self.replicas)

    def ask(self, method: str, path: str, *, json: object = None, key: str | None = None) -> httpx.Response:
        """Ask until somebody answers: an API that was killed in the middle comes back, and is asked again."""
        headers = {"Authorization": f"Bearer {self.token}"} | ({"Idempotency-Key": key} if key else {})
        deadline = time.monotonic() + END_S
        while True:
            self.keep_up()
            try:
                url = f"{self.replicas[0].url}/api/v1{path}"
                answer = httpx.request(method, url, json=json, headers=headers, trust_env=False, timeout=30)
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    return answer
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, f"nobody answers {method} {path}"
            time.sleep(0.2)


@dataclass
class Outcome:
    """What a round did and found."""

    kills: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)
    """Kills that never came: the job had ended before, or no such process was there."""
    findings: list[str] = field(default_factory=list)
    wall_s: float = 0


def run_round(plan: Round, world: World) -> Outcome:
    """Do it all; findings are what must not be."""
    outcome, began = Outcome(), time.monotonic()
    failpoints = [kill for kill in plan.kills if kill.victim not in RAY_VICTIMS]
    for api in world.replicas if failpoints else ():  # all: which of them leads is theirs to settle
        restart_with(api, failpoints[0])
    starts = world.num_starts()
    if not world.has_webhook:
        told = world.ask("POST", "/webhooks", json={"url": world.receiver.url, "states": ["RUNNING", *TERMINAL_STATES]})
        assert told.status_code == 201, told.text
        world.has_webhook = True
    job_id = submit(plan, world, outcome)
    submitted = time.monotonic()
    for kill in plan.kills:
        if kill.victim in RAY_VICTIMS:
            kill_in_time(kill, job_id, world, submitted, outcome)
    if any("cancel" in kill.victim for kill in failpoints):
        poll(lambda: state_of(job_id, world) not in {"QUEUED", "STARTING"}, world.keep_up, END_S)
        world.ask("POST", f"/jobs/{job_id}/cancel")
    if not poll(lambda: state_of(job_id, world) in TERMINAL_STATES, world.keep_up, END_S):
        outcome.findings.append(f"job {job_id} never ends: {world.ask('GET', f'/jobs/{job_id}').text}")
        world.ask("POST", f"/jobs/{job_id}/cancel", json={"mode": "now"})
    for kill in failpoints:
        if num_killed := world.num_starts() - starts:
            outcome.kills[f"api at {kill.victim}"] += num_killed
        else:
            outcome.missed.append(f"{kill.victim} was not passed {kill.passing} times")
    outcome.findings += look(job_id, plan, world)
    outcome.wall_s = time.monotonic() - began
    return outcome


def restart_with(api: Api, kill: Kill) -> None:
    """Start an API anew, to be killed where the round says."""
    api.stop()
    api.start(f"{kill.victim}:{kill.passing}")
    api.wait_ready()


def submit(plan: Round, world: World, outcome: Outcome) -> str:
    """Hand the job in under a key, twice: it is one job, also where the first answer was lost."""
    key = uuid.uuid4().hex
    spec = {
        "name": f"round-{plan.number}",
        "data": {"manifest": str(world.manifest), "image_size": 8, "batch_size": 64, "augmentation": "none"},
        "model": {"arch": "small_cnn"},
        "method": {"kind": "ivon", "lr": 0.5, "hess_init": 1.0, "ess": 100_000, "beta2": 0.999},
        "schedule": {"epochs": plan.num_epochs},
        "label_noise": {"num_examples": 64, "num_mc_samples": 2},
        "resources": {"num_workers": plan.num_workers},
        "fault_tolerance": {"max_failures": 10, "checkpoint_every_steps": 10},
    }
    answers = [world.ask("POST", "/jobs", json=spec, key=key) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202], [answer.text for answer in answers]
    ids = {answer.json()["id"] for answer in answers}
    listed = world.ask("GET", f"/jobs?name={spec['name']}").json()["items"]
    if len(ids) != 1 or len(listed) != 1:
        outcome.findings.append(f"one key made {len(listed)} jobs: {ids}")
    return str(answers[0].json()["id"])


def kill_in_time(kill: Kill, job_id: str, world: World, submitted: float, outcome: Outcome) -> None:
    """Wait for the moment, then kill; it may be too late."""

    def is_time() -> bool:
        if state_of(job_id, world) in TERMINAL_STATES:
            return True
        if kill.when == "starting":
            return time.monotonic() >= submitted + kill.after_s
        return epochs_told(job_id, world) >= max(1, kill.after_epoch)

    in_time = poll(is_time, world.keep_up, END_S) and state_of(job_id, world) not in TERMINAL_STATES
    if in_time and poll(lambda: world.cluster.kill(kill.victim), world.keep_up, 30):
        outcome.kills[kill.victim] += 1
    else:
        outcome.missed.append(f"{kill.victim} {kill.when}")


def state_of(job_id: str, world: World) -> str:
    """The job's state, by whoever answers."""
    return str(world.ask("GET", f"/jobs/{job_id}").json()["state"])


def epochs_told(job_id: str, world: World) -> int:
    """Number of epochs whose end was told."""
    return sum(event["kind"] == "epoch" for event in events_of(job_id, world))


def events_of(job_id: str, world: World) -> list[dict[str, object]]:
    """All events of a job."""
    items = world.ask("GET", f"/jobs/{job_id}/events?limit=1000").json()["items"]
    assert isinstance(items, list)
    return items


def look(job_id: str, plan: Round, world: World) -> list[str]:
    """What is wrong with a job that has ended."""
    job = world.ask("GET", f"/jobs/{job_id}").json()
    cancelled = any("cancel" in kill.victim for kill in plan.kills)
    findings = []
    if job["state"] != ("CANCELLED" if cancelled else "SUCCEEDED"):
        findings.append(f"{job_id} is {job['state']} ({job['reason']}): {job['message']}")
    events = events_of(job_id, world)
    states = [event["state"] for event in events if event["kind"] == "state"]
    if sum(state in TERMINAL_STATES for state in states) != 1 or states[-1] not in TERMINAL_STATES:
        findings.append(f"{job_id} has not one end: {states}")
    told = [event["epoch"]["epoch"] for event in events if event["kind"] == "epoch"]  # type: ignore[index]
    if job["state"] == "SUCCEEDED":
        wanted = list(range(1, plan.num_epochs + 1))
        if sorted(told) != wanted:
            findings.append(f"{job_id} told the epochs {told}, not each of {wanted} once")
        findings += look_at_results(world.storage / "jobs" / job_id / f"attempt-{job['attempt']}", wanted)
    if not poll(lambda: job["state"] in told_of(job_id, world.receiver), world.keep_up, LEFT_S):
        findings.append(f"the webhook was told {told_of(job_id, world.receiver)} of {job_id}")
    if not poll(lambda: not left_behind(world), world.keep_up, LEFT_S):
        findings.append(f"left behind after {job_id}: {left_behind(world)}")
    return findings


def told_of(job_id: str, receiver: Receiver) -> list[str]:
    """The states of a job that the webhook was told, each delivery once."""
    events = [(heard.headers["webhook-id"], json.loads(heard.body)["data"]["event"]) for heard in receiver.heard]
    return list({delivery: event["state"] for delivery, event in events if event["job_id"] == job_id}.values())


def look_at_results(folder: Path, wanted: list[int]) -> list[str]:
    """Whether the last attempt's folder holds each epoch exactly once."""
    lines = [json.loads(line) for line in (folder / JOURNAL_FILE).read_text().splitlines()]
    ends = [line["epoch"] for line in lines if "train/accuracy" in line.get("metrics", {})]
    findings = [] if ends == wanted else [f"{folder}: the journal ends the epochs {ends}"]
    missing = [epoch for epoch in wanted if not (folder / epoch_file(EVALUATION_DIR, epoch, "json")).exists()]
    if missing or not (folder / RESULT_FILE).exists():
        findings.append(f"{folder}: no evaluation of epochs {missing}, or no result")
    return findings


def left_behind(world: World) -> list[str]:
    """Processes of attempts that live though no job does."""
    found = []
    for what in ATTEMPT_PROCESSES:
        for process in marked(world.mark, what):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ends just now
                found.append(" ".join(process.cmdline())[:200])
    return found
