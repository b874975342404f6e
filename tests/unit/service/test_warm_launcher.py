"""Which attempts go to a spare, and when one is started, kept, sent home or given up."""

from __future__ import annotations

from pathlib import Path

import pytest
from folder_cluster import FolderCluster, attempt_in

from service.cluster.launcher import Phase
from service.cluster.spares import Spare, Spares
from service.cluster.warm_launcher import MAX_DEAD_SPARES, WarmLauncher, spare_command
from trainer import ray_entry
from trainer.handover import handed_over
from trainer.rank_group import RankGroup
from trainer.run_schema import Handover
from trainer.timeline import mark

JOB = "job-1-a1"


@pytest.fixture
def cluster(tmp_path: Path) -> FolderCluster:
    return FolderCluster(tmp_path / "cluster")


@pytest.fixture
def spares(tmp_path: Path) -> Spares:
    return Spares(tmp_path / "spares")


@pytest.fixture
def launcher(cluster: FolderCluster, spares: Spares) -> WarmLauncher:
    return WarmLauncher(cluster, Path("/python"), spares)


def only(spares: list[Spare]) -> Spare:
    [spare] = spares
    return spare


def test_a_spare_is_kept_and_no_second_one(launcher: WarmLauncher, cluster: FolderCluster, spares: Spares) -> None:
    for _ in range(3):
        launcher.keep_once()
    spare = only(spares.waiting())
    assert cluster.names() == [spare.id]
    assert spare_command(Path("/python"), spare)[3:] == ["--spare", str(spare.folder), "1"]


def test_an_attempt_goes_to_the_spare_and_is_found_there(
    launcher: WarmLauncher, cluster: FolderCluster, spares: Spares, tmp_path: Path
) -> None:
    launcher.keep_once()
    spare = only(spares.waiting())
    run_dir = attempt_in(tmp_path / "attempt-1")
    launcher.submit(JOB, run_dir)
    assert handed_over(spare.folder) == Handover(attempt_dir=str(run_dir))
    assert cluster.names() == [spare.id]
    later = WarmLauncher(cluster, Path("/python"), spares)  # the service was started again
    assert later.status(JOB).phase is Phase.RUNNING
    later.stop(JOB)
    assert cluster.names() == []
    assert launcher.status(JOB).phase is Phase.LOST


@pytest.mark.parametrize("resources", [{"num_workers": 2}, {"gpus_per_worker": 1}])
def test_an_attempt_that_no_spare_fits_gets_a_driver_of_its_own(
    launcher: WarmLauncher, cluster: FolderCluster, spares: Spares, tmp_path: Path, resources: dict[str, int]
) -> None:
    launcher.keep_once()
    launcher.submit(JOB, attempt_in(tmp_path / "attempt-1", **resources))
    assert JOB in cluster.names()
    assert launcher.status(JOB).phase is Phase.RUNNING
    assert handed_over(only(spares.waiting()).folder) is None


def test_the_next_spare_has_as_many_ranks_as_the_last_job(
    launcher: WarmLauncher, cluster: FolderCluster, spares: Spares, tmp_path: Path
) -> None:
    launcher.keep_once()
    first = only(spares.waiting())
    launcher.submit(JOB, attempt_in(tmp_path / "attempt-1", num_workers=2))
    launcher.keep_once()
    assert spares.waiting() == []
    assert handed_over(first.folder) == Handover(attempt_dir=None), "it is sent home"
    mark(tmp_path / "attempt-1", "first_step")
    cluster.stop(first.id)
    launcher.keep_once()
    assert not first.folder.exists(), "once it has ended, nothing of it is left"
    assert only(spares.waiting()).num_workers == 2


def test_no_spare_is_started_while_an_attempt_starts(
    launcher: WarmLauncher, cluster: FolderCluster, spares: Spares, tmp_path: Path
) -> None:
    run_dir = attempt_in(tmp_path / "attempt-1")
    launcher.submit(JOB, run_dir)
    launcher.keep_once()
    mark(run_dir, "rank_started")
    launcher.keep_once()
    assert spares.waiting() == []
    mark(run_dir, "first_step")
    launcher.keep_once()
    assert only(spares.waiting())
    other = attempt_in(tmp_path / "attempt-2")
    launcher.submit("job-2-a1", other)
    launcher.keep_once()
    assert spares.waiting() == []
    launcher.stop("job-2-a1")
    launcher.keep_once()
    assert only(spares.waiting()), "an attempt that ended before its first step is waited for no longer"


def test_spares_that_die_are_given_up_until_the_next_submission(
    launcher: WarmLauncher, cluster: FolderCluster, spares: Spares, tmp_path: Path
) -> None:
    num_started = 0
    for _ in range(2 * MAX_DEAD_SPARES):
        launcher.keep_once()
        for spare in spares.waiting():
            num_started += 1
            cluster.stop(spare.id)
    assert num_started == MAX_DEAD_SPARES
    launcher.submit(JOB, attempt_in(tmp_path / "attempt-1"))
    assert cluster.names() == [JOB]
    launcher.stop(JOB)
    launcher.keep_once()
    assert only(spares.waiting())


def test_a_spare_that_fails_is_handed_nothing_while_it_ends(
    launcher: WarmLauncher, cluster: FolderCluster, spares: Spares, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: RankGroup) -> None:
        raise RuntimeError("its ranks died")

    monkeypatch.setattr(ray_entry, "run_on_ray", fail)
    launcher.keep_once()
    spare = only(spares.waiting())
    with pytest.raises(RuntimeError, match="its ranks died"):
        ray_entry.run_spare(spare.folder, 1)
    launcher.submit(JOB, attempt_in(tmp_path / "attempt-1"))
    assert cluster.names() == sorted([JOB, spare.id]), "its process is there yet"
    assert launcher.status(JOB).phase is Phase.RUNNING
    launcher.stop(JOB)
    for _ in range(2 * MAX_DEAD_SPARES):
        cluster.stop(spare.id)
        launcher.keep_once()
        spare = only(spares.open() or [spare])
        if spare in spares.waiting():
            with pytest.raises(RuntimeError, match="its ranks died"):
                ray_entry.run_spare(spare.folder, 1)
    assert spares.open() == [], "after so many that failed no more are started"
    assert list(spares.root.glob("spare-*")) == []


def test_none_is_started_on_a_cluster_without_machines(
    launcher: WarmLauncher, cluster: FolderCluster, spares: Spares
) -> None:
    cluster.machines = []
    launcher.keep_once()
    assert spares.waiting() == []


def test_closing_sends_the_spare_home(launcher: WarmLauncher, spares: Spares) -> None:
    launcher.keep_once()
    spare = only(spares.waiting())
    launcher.close()
    assert handed_over(spare.folder) == Handover(attempt_dir=None)


def test_files_that_a_power_cut_left_empty_keep_nobody_waiting(
    launcher: WarmLauncher, cluster: FolderCluster, spares: Spares, tmp_path: Path
) -> None:
    launcher.keep_once()
    spare, run_dir = only(spares.waiting()), attempt_in(tmp_path / "attempt-1")
    launcher.submit(JOB, run_dir)
    cluster.stop(spare.id)
    for path in (spares.root / "open" / spare.id, spares.root / "launches" / JOB, spare.folder / "handover.json"):
        path.write_bytes(b"")
    assert launcher.status(JOB).phase is Phase.LOST
    mark(run_dir, "first_step")
    launcher.keep_once()
    assert only(spares.waiting()) != spare
