"""Stops the jobs of studies that early stopping finds hopeless: a step of the leader's look."""

from __future__ import annotations

import logging
from datetime import datetime

from service.jobs.records import Fence, LeaseLostError
from service.store.studies import Studies
from service.studies.study_spec import AshaSpec

logger = logging.getLogger(__name__)


class EarlyStopper:
    """Looks at each study that stops early and of which a job trains, and decides where something new was told.

    It remembers only which studies need no new decision; one that has just begun decides once more, to the same end.
    """

    def __init__(self, studies: Studies) -> None:
        """`studies` are those of the database whose leader calls `stop_hopeless`."""
        self._studies = studies
        self._decided: dict[str, int] = {}

    def stop_hopeless(self, now: datetime, fence: Fence | None) -> None:
        """Ask hopeless jobs to stop. LeaseLostError if the caller is not the leader any more."""
        training = self._studies.with_early_stop()
        self._decided = {study_id: self._decided[study_id] for study_id, _ in training if study_id in self._decided}
        for study_id, rule in training:
            try:
                self._attend(study_id, rule, now, fence)
            except LeaseLostError:
                raise
            except Exception:  # one study's trouble never keeps anybody else from their turn
                logger.exception("study %s could not be attended to", study_id)

    def _attend(self, study_id: str, rule: AshaSpec, now: datetime, fence: Fence | None) -> None:
        from service.studies.asha import hopeless, rungs  # noqa: PLC0415 (a third of a second, which most never need)

        epochs = rungs(rule)
        num_told = self._studies.num_told(study_id, epochs)
        if num_told == self._decided.get(study_id):
            return
        stopped = self._studies.stop_early(hopeless(rule, self._studies.told(study_id, epochs)), now, fence)
        if stopped:
            logger.info("study %s: stopped early: %s", study_id, ", ".join(stopped))
        self._decided[study_id] = num_told
