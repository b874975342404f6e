"""Ray Train with its controller inside the driver, and with none of the helpers that a job of ours has no use for.

Stock Ray Train runs five actors beside the ranks, each a process that imports Ray Train once more, before it starts the
ranks: controller, preemption watcher, autoscaling coordinator, cleaner of placement groups, and manager of (no) data
sets. In the driver, the controller needs no process, and its placement group goes when the driver's job goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks import AcceleratorSetupCallback, BackendSetupCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import Worker, WorkerGroup
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.train.v2.api.result import Result

from trainer.rank_group import RankGroup
from trainer.ray_rank import Rank, free_address, import_needed, join_group


class _JoinRanks(Backend):
    """Makes the process group. Ray's own backend would have driver and controller import torch."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:  # noqa: ARG002
        """The port is chosen after the imports, as late as can be: until rank 0 listens, others may take it."""
        worker_group.execute(import_needed)
        if len(worker_group) > 1:
            backend = "nccl" if worker_group.get_resources_per_worker().get("GPU") else "gloo"
            address = worker_group.execute_single(0, free_address)
            worker_group.execute(join_group, address, backend)


@dataclass
class JoinRanks(BackendConfig):
    """The process group is gloo on CPUs and NCCL on GPUs."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What Ray Train calls."""
        return _JoinRanks


class _Group(WorkerGroup):
    _worker_cls = Rank

    def _init_train_context_on_workers(
        self, workers: Sequence[Worker], sync_actor: object, train_context_args: Mapping[str, Sequence[object]]
    ) -> None:
        """As Ray Train does it, but the controller is no actor that ranks could call."""
        ray.get(
            [
                worker.actor.init_train_context.remote(
                    train_run_context=self._train_run_context,
                    distributed_context=worker.distributed_context,
                    synchronization_actor=sync_actor,
                    storage_context=self._storage_context,
                    worker_callbacks=self._worker_callbacks_to_propagate,
                    controller_actor=None,
                    **{name: values[index] for name, values in train_context_args.items()},
                )
                for index, worker in enumerate(workers)
            ]
        )


class _Controller(TrainController):
    worker_group_cls = _Group


class _FixedSize(FixedScalingPolicy):
    """Asks for nothing beforehand: a placement group that waits is known to an autoscaler anyway."""

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        """Nothing to register."""

    def _maybe_send_resource_request(self) -> None:
        """Nothing to renew."""


class _Retries(DefaultFailurePolicy):
    """Asks how often to try again when the ranks have failed: a spare does not know it before."""

    def __init__(self, max_failures: Callable[[], int]) -> None:
        super().__init__(FailureConfig())
        self._max_failures = max_failures

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Whether to start the ranks again."""
        self.failure_config = FailureConfig(max_failures=self._max_failures())
        return super().make_decision(training_failed_error)


class _Trainer(DataParallelTrainer):
    """Steps its controller in this process."""

    def __init__(self, train_rank: Callable[[dict[str, str]], None], group: RankGroup) -> None:
        self._size = ScalingConfig(
            num_workers=group.num_workers,
            use_gpu="GPU" in group.resources_per_worker,
            resources_per_worker=group.resources_per_worker,
        )
        logging = LoggingConfig(log_level="WARNING")
        run = RunConfig(name="ray_train", storage_path=str(group.folder), logging_config=logging)
        super().__init__(
            train_rank,
            train_loop_config=group.config,
            backend_config=JoinRanks(),
            scaling_config=self._size,
            run_config=run,  # type: ignore[arg-type]  # Ray's annotations name the classes of version 1
        )
        self._max_failures = group.max_failures

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        return [
            AcceleratorSetupCallback(self.backend_config, self._size),
            BackendSetupCallback(self.backend_config),
        ]

    def _initialize_and_run_controller(self, **parts: Any) -> Result:  # Ray's signature
        parts["scaling_policy"] = _FixedSize(self._size)
        parts["failure_policy"] = _Retries(self._max_failures)
        controller = _Controller(**parts)
        asyncio.run(controller.run())  # type: ignore[no-untyped-call]
        return controller.get_result()


def run_ranks(train_rank: Callable[[dict[str, str]], None], group: RankGroup) -> None:
    """Run `train_rank` on all ranks to their end; raises what Ray Train raises when it has given up."""
    _Trainer(train_rank, group).fit()
