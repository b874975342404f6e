"""Which process is killed in which round, and when: a pure function of the round's number."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from service.control.failpoints import Failpoint

RAY_VICTIMS = {
    "driver": "trainer.ray_entry",
    "worker": "ray::Rank",
    "gcs": "gcs_server",
    "dashboard": "dashboard/dashboard.py",
    "raylet": "raylet/raylet",
}
"""Processes of Ray that are killed, and what is in each one's command line. Ray Train's controller is in the driver."""

STARTING_S = 8.0
"""A kill while the job starts comes within this time of its submission."""


@dataclass(frozen=True)
class Kill:
    """One kill: of the API at a failpoint, or of a process of Ray at some time."""

    victim: str
    """A Failpoint, or a key of RAY_VICTIMS."""
    when: Literal["passing", "starting", "running"]
    """At a failpoint: `passing` it. Else `after_s` from the submission, or once `after_epoch` is finished."""
    passing: int = 1
    after_s: float = 0
    after_epoch: int = 0


@dataclass(frozen=True)
class Round:
    """What happens in one round."""

    number: int
    database: Literal["sqlite", "postgres"]
    num_replicas: int
    """API processes on the database. At a failpoint each is killed that comes to pass there."""
    num_workers: int
    num_epochs: int
    kills: tuple[Kill, ...]


def victims() -> list[str]:
    """All, in the order in which rounds take them: kinds are mixed, so that a few rounds meet a bit of everything."""
    failpoints, ray = [str(point) for point in Failpoint], list(RAY_VICTIMS)
    every = max(1, len(failpoints) // len(ray))
    mixed = []
    for index, point in enumerate(failpoints):
        mixed.append(point)
        if index % every == 0 and ray:
            mixed.append(ray.pop(0))
    return mixed + ray


def plan_round(number: int, seed: int = 0) -> Round:
    """The same round for the same number and seed. Every third has a second kill, of another kind."""
    rng = random.Random(f"{seed}-{number}")
    everybody = victims()
    first = everybody[number % len(everybody)]
    kills = [_kill(first, rng)]
    if number % 3 == 2:
        kills.append(_kill(rng.choice([v for v in RAY_VICTIMS if v != first]), rng))
    on_postgres = number % 2 == 1
    return Round(
        number=number,
        database="postgres" if on_postgres else "sqlite",
        num_replicas=2 if on_postgres else 1,
        num_workers=1 + (number % 4 == 3),
        num_epochs=8,
        kills=tuple(kills),
    )


def _kill(victim: str, rng: random.Random) -> Kill:
    if victim not in RAY_VICTIMS:
        often = victim.startswith("heartbeat")
        return Kill(victim, "passing", passing=rng.randint(1, 5) if often else 1)
    if victim == "worker" or rng.random() < 0.6:
        return Kill(victim, "running", after_epoch=rng.randint(0, 2))
    return Kill(victim, "starting", after_s=rng.uniform(0, STARTING_S))
