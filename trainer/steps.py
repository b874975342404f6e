"""One training step for each method, all of one signature, so that the loop knows no method."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, assert_never

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainer import ddp
from trainer.batch_norm import statistics_kept
from trainer.label_noise.training import epsilon_sq_of_pairs
from trainer.method_spec import (
    AdamWSpec,
    ASAMSpec,
    BSAMSpec,
    IVONSpec,
    LookSAMSpec,
    MethodSpec,
    MSAMSpec,
    SAMSpec,
    SGDSpec,
)
from trainer.optim.bsam import BSAM
from trainer.optim.ivon import IVON
from trainer.optim.looksam import LookSAM
from trainer.optim.msam import MSAM
from trainer.optim.sam import SAM
from trainer.targets import Target


@dataclass(frozen=True)
class Learner:
    """What a step works on."""

    model: nn.Module
    """The model, wrapped in DDP when there are several ranks."""
    optimizer: Optimizer
    target: Target
    autocast: Callable[[], AbstractContextManager[Any]]
    """A fresh context for each forward pass: bf16 autocast, or nothing."""


@dataclass(frozen=True)
class StepOutput:
    """What a step saw, detached."""

    loss: Tensor
    """Scalar: Σ weights_B · loss_B, the mean over MC samples."""
    logits_BC: Tensor
    """The mean over MC samples: a training prediction for free, not that of the posterior mean."""
    epsilon_sq_B: Tensor | None = None
    """‖ε‖₂² of each example's label noise (Eq. 20), where the step's samples give it away; see label_noise.training."""


StepFunction = Callable[[Learner, Tensor, Tensor, Tensor], StepOutput]
"""(learner, images_BCHW, labels_B, weights_B) -> StepOutput, with the optimizer moved one step.

weights_B makes the loss: Σ weights_B · loss_B. Padding weighs 0, and the rest so that DDP's mean over ranks is the mean
over the global batch.
"""


def step_for(method: MethodSpec) -> StepFunction:
    """The training step of a method."""
    step: StepFunction
    match method:
        case IVONSpec(antithetic=True):
            step = antithetic_ivon_step
        case IVONSpec():
            step = ivon_step
        case SGDSpec() | AdamWSpec():
            step = gradient_step
        case SAMSpec() | ASAMSpec():
            step = sam_step
        case LookSAMSpec():
            step = looksam_step
        case MSAMSpec():
            step = msam_step
        case BSAMSpec():
            step = bsam_step
        case _:
            assert_never(method)
    return step


def gradient_step(learner: Learner, images_BCHW: Tensor, labels_B: Tensor, weights_B: Tensor) -> StepOutput:
    """One gradient, one step: SGD and AdamW."""
    learner.optimizer.zero_grad()
    output = _forward_backward(learner, images_BCHW, labels_B, weights_B)
    learner.optimizer.step()
    return output


def ivon_step(learner: Learner, images_BCHW: Tensor, labels_B: Tensor, weights_B: Tensor) -> StepOutput:
    """A forward and backward pass at each MC sample of the weights, then IVON's step.

    Under DDP each sample's backward averages its gradient over ranks. Averaging once, after the last sample, would do
    for ḡ = mean(ĝ) but not for mean(ε⊙ĝ): it needs each sample's ĝ of the whole batch, beside the noise of that sample.
    """
    return _mean_output(_ivon_outputs(learner, images_BCHW, labels_B, weights_B))


def antithetic_ivon_step(learner: Learner, images_BCHW: Tensor, labels_B: Tensor, weights_B: Tensor) -> StepOutput:
    """IVON's step from samples in pairs m ± σe, which also tell the label noise of the batch."""
    outputs = _ivon_outputs(learner, images_BCHW, labels_B, weights_B)
    epsilon_sq_B = epsilon_sq_of_pairs([output.logits_BC for output in outputs])
    return replace(_mean_output(outputs), epsilon_sq_B=epsilon_sq_B)


def _ivon_outputs(learner: Learner, images_BCHW: Tensor, labels_B: Tensor, weights_B: Tensor) -> list[StepOutput]:
    """What the step saw at each MC sample, in their order."""
    optimizer = learner.optimizer
    assert isinstance(optimizer, IVON)
    outputs = []
    for _ in range(optimizer.mc_samples):
        optimizer.zero_grad()
        with optimizer.sampled_params(train=True):
            outputs.append(_forward_backward(learner, images_BCHW, labels_B, weights_B))
    optimizer.step()
    return outputs


def _mean_output(outputs: list[StepOutput]) -> StepOutput:
    if len(outputs) == 1:
        return outputs[0]
    return StepOutput(
        loss=torch.stack([output.loss for output in outputs]).mean(),
        logits_BC=torch.stack([output.logits_BC for output in outputs]).mean(dim=0),
    )


def sam_step(learner: Learner, images_BCHW: Tensor, labels_B: Tensor, weights_B: Tensor) -> StepOutput:
    """A pass at the weights, one at the weights perturbed along its gradient, and a step with the second's gradient.

    The first gradient stays with its rank (m-SAM); the second is averaged. The first pass is what a training step
    without SAM sees: BatchNorm's running statistics and the output are of it.
    """
    optimizer = learner.optimizer
    assert isinstance(optimizer, SAM)
    optimizer.zero_grad()
    with ddp.without_averaging(learner.model):
        output = _forward_backward(learner, images_BCHW, labels_B, weights_B)
    with optimizer.perturbed(), statistics_kept(learner.model):
        _forward_backward(learner, images_BCHW, labels_B, weights_B)
    optimizer.step()
    return output


def looksam_step(learner: Learner, images_BCHW: Tensor, labels_B: Tensor, weights_B: Tensor) -> StepOutput:
    """In each k-th step SAM's two passes, in the others one. Both gradients are averaged over ranks."""
    optimizer = learner.optimizer
    assert isinstance(optimizer, LookSAM)
    optimizer.zero_grad()
    output = _forward_backward(learner, images_BCHW, labels_B, weights_B)
    if optimizer.is_sam_step:
        with optimizer.perturbed(), statistics_kept(learner.model):
            _forward_backward(learner, images_BCHW, labels_B, weights_B)
    optimizer.step()
    return output


def msam_step(learner: Learner, images_BCHW: Tensor, labels_B: Tensor, weights_B: Tensor) -> StepOutput:
    """One pass, at the weights perturbed along the momentum."""
    optimizer = learner.optimizer
    assert isinstance(optimizer, MSAM)
    optimizer.zero_grad()
    with optimizer.perturbed():
        output = _forward_backward(learner, images_BCHW, labels_B, weights_B)
    optimizer.step()
    return output


def bsam_step(learner: Learner, images_BCHW: Tensor, labels_B: Tensor, weights_B: Tensor) -> StepOutput:
    """A pass at a sample of the weights, and one at their mean perturbed along its gradient.

    Both gradients are averaged over ranks, and all ranks draw the same sample: results don't depend on their number.
    """
    optimizer = learner.optimizer
    assert isinstance(optimizer, BSAM)
    optimizer.zero_grad()
    with optimizer.sampled_params():
        output = _forward_backward(learner, images_BCHW, labels_B, weights_B)
    with optimizer.perturbed(), statistics_kept(learner.model):
        _forward_backward(learner, images_BCHW, labels_B, weights_B)
    optimizer.step()
    return output


def _forward_backward(learner: Learner, images_BCHW: Tensor, labels_B: Tensor, weights_B: Tensor) -> StepOutput:
    with learner.autocast():
        logits_BC = learner.model(images_BCHW)
    loss = (weights_B * learner.target(logits_BC, labels_B)).sum()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves Tensor.backward untyped
    return StepOutput(loss=loss.detach(), logits_BC=logits_BC.detach())
