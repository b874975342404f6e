"""Handing attempts to spares: whoever asks, however often, and wherever he is killed, an attempt runs once."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
from folder_cluster import FolderCluster, attempt_in
from hypothesis import given, settings
from hypothesis import strategies as st

from service.cluster import spares as spares_module
from service.cluster import warm_launcher as warm_launcher_module
from service.cluster.launcher import Phase
from service.cluster.spares import Spares
from service.cluster.warm_launcher import WarmLauncher
from trainer.handover import handed_over

JOB = "job-1-a1"
TRACED = {spares_module.__file__, warm_launcher_module.__file__}


class World:
    """A service's folders: one attempt, and spares."""

    def __init__(self, folder: Path) -> None:
        self.cluster = FolderCluster(folder / "cluster")
        self.spares = Spares(folder / "spares")
        self.run_dir = attempt_in(folder / "attempt-1")

    def launcher(self) -> WarmLauncher:
        """As after a start of the service: it knows nothing but what lies in the folders."""
        return WarmLauncher(self.cluster, Path("/python"), self.spares)

    def runs(self) -> list[str]:
        """Where the attempt was started."""
        cold = [JOB] if (self.cluster.folder / JOB).exists() else []
        handed = [(folder.name, handed_over(folder)) for folder in (self.spares.root).glob("spare-*")]
        return cold + [name for name, handover in handed if handover and handover.attempt_dir == str(self.run_dir)]


@contextmanager
def world() -> Iterator[World]:
    with tempfile.TemporaryDirectory() as folder:
        yield World(Path(folder))


@settings(deadline=None, max_examples=20)
@given(num_claimants=st.integers(2, 6), times=st.integers(1, 3))
def test_of_all_who_claim_a_spare_one_gets_it(num_claimants: int, times: int) -> None:
    with world() as here:
        spare = here.spares.create("spare-1", 1)
        gates = threading.Barrier(num_claimants)
        got: list[tuple[int, bool]] = []

        def claim(number: int) -> None:
            gates.wait()
            answers = [here.spares.hand_over(spare.id, Path(f"/attempt-{number}")) for _ in range(times)]
            assert len(set(answers)) == 1, "asked again, the answer is the same"
            got.append((number, answers[0]))

        threads = [threading.Thread(target=claim, args=(number,)) for number in range(num_claimants)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        [winner] = [number for number, has_it in got if has_it]
        handover = handed_over(spare.folder)
        assert handover is not None
        assert handover.attempt_dir == f"/attempt-{winner}"
        assert [file.name for file in spare.folder.iterdir() if "handover" in file.name] == ["handover.json"]


def submit_and_die(here: World, line: int) -> bool:
    """Submit in a process that dies before it has executed so many lines; whether it came to its end all the same."""
    pid = os.fork()
    if pid == 0:
        left = line

        def trace(frame: FrameType, event: str, _: object) -> object:
            nonlocal left
            if frame.f_code.co_filename not in TRACED:
                return None
            if event == "line":
                left -= 1
                if left < 0:
                    os._exit(9)
            return trace

        launcher = here.launcher()
        sys.settrace(trace)  # type: ignore[arg-type]  # what typeshed asks for is more than Python does
        launcher.submit(JOB, here.run_dir)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        *(("no spare", after) for after in ("goes on", "a spare comes")),
        *(("a spare", after) for after in ("goes on", "spares die", "spares die unseen", "a spare comes", "is taken")),
        *(("a dead spare", after) for after in ("goes on", "a spare comes")),
        *(("two spares", after) for after in ("goes on", "is taken")),
    ],
)
def test_killed_at_any_line_and_asked_again_it_starts_once(before: str, after: str) -> None:
    line, came_through = 0, False
    while not came_through:
        with world() as here:
            for number in range({"no spare": 0, "two spares": 2}.get(before, 1)):
                spare = here.spares.create(f"spare-{number}", 1)
                if before != "a dead spare":
                    here.cluster.start(spare.id, [])
            came_through = submit_and_die(here, line)
            at_once = here.runs()
            assert len(at_once) <= 1
            happen(here, after)
            here.launcher().submit(JOB, here.run_dir)
            here.launcher().submit(JOB, here.run_dir)
            assert len(here.runs()) == 1
            assert not at_once or here.runs() == at_once, "what has begun is not begun anew elsewhere"
            running = here.launcher().status(JOB).phase is Phase.RUNNING
            assert running or (at_once and after.startswith("spares die"))
        line += 1
    assert line > 10, "it was killed at no line"


def happen(here: World, what: str) -> None:
    """What the world does while the service is away."""
    if what == "spares die":
        for spare in here.spares.waiting():
            here.cluster.stop(spare.id)
            here.launcher().keep_once()
    if what == "spares die unseen":
        for spare in here.spares.open():
            here.cluster.stop(spare.id)
    if what == "a spare comes":
        here.cluster.start(here.spares.create("spare-new", 1).id, [])
    if what == "is taken":
        for spare in here.spares.waiting():
            here.spares.hand_over(spare.id, Path("/another"))
