"""Ray Train with its controller inside the driver, and with none of the helpers that a job of ours has no use for.

Stock Ray Train runs five actors beside the ranks, each a process that imports Ray Train once more, before it starts the
ranks: controller, preemption watcher, autoscaling coordinator, cleaner of placement groups, and manager of (no) data
sets. In the driver, the controller needs no process, and its placement group goes when the driver's job goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks import AcceleratorSetupCallback, BackendSetupCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import Worker, WorkerGroup
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.result import Result

from trainer.ray_rank import Rank, free_address, import_needed, join_group


class _JoinRanks(Backend):  # type: ignore[misc]  # Ray is untyped
    """Makes the process group. Ray's own backend would have driver and controller import torch."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: WorkerGroup, backend_config: BackendConfig) -> None:  # noqa: ARG002
        """The port is chosen after the imports, as late as can be: until rank 0 listens, others may take it."""
        worker_group.execute(import_needed)
        if len(worker_group) > 1:
            backend = "nccl" if worker_group.get_resources_per_worker().get("GPU") else "gloo"
            address = worker_group.execute_single(0, free_address)
            worker_group.execute(join_group, address, backend)


@dataclass
class JoinRanks(BackendConfig):  # type: ignore[misc]
    """The process group is gloo on CPUs and NCCL on GPUs."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What Ray Train calls."""
        return _JoinRanks


class _Group(WorkerGroup):  # type: ignore[misc]
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


class _Controller(TrainController):  # type: ignore[misc]
    worker_group_cls = _Group


class _FixedSize(FixedScalingPolicy):  # type: ignore[misc]
    """Asks for nothing beforehand: a placement group that waits is known to an autoscaler anyway."""

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        """Nothing to register."""

    def _maybe_send_resource_request(self) -> None:
        """Nothing to renew."""


class DriverTrainer(DataParallelTrainer):  # type: ignore[misc]
    """Runs `train_loop_per_worker` on ranks that form a process group; `fit` steps the controller in this process."""

    def _create_default_callbacks(self) -> list[object]:
        return [
            AcceleratorSetupCallback(self.backend_config, self.scaling_config),
            BackendSetupCallback(self.backend_config),
        ]

    def _initialize_and_run_controller(self, **parts: object) -> Result:
        parts["scaling_policy"] = _FixedSize(self.scaling_config)
        controller = _Controller(**parts)
        asyncio.run(controller.run())
        return controller.get_result()
