"""What test_ivon_ranks trains, and by plain formulas what mean, momentum and Hessian must become.

The reference is one process that plays all ranks, on no code of the optimizer but the noise, which it draws by key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from trainer.optim.noise import DrawKey, Stream, seeded_normal

NUM_STEPS = 5
BATCH_SIZE = 24
SEED = 1
LR, ESS, HESS_INIT, BETA1, BETA2, DECAY = 0.1, 100.0, 0.5, 0.9, 0.9, 0.01


@dataclass(frozen=True)
class Case:
    """One training."""

    model: Literal["ddp", "small buckets", "own gradients", "bare"] = "ddp"
    """As the trainer wraps it; a bucket for each parameter or two; the same without views of buckets; not wrapped."""
    per_rank: bool = True
    mc_samples: int = 1
    antithetic: bool = False
    hess_approx: Literal["price", "gradsq"] = "price"
    fixed_hessian: bool = False
    accumulate: bool = False
    """Two backward passes a sample, the first without averaging."""
    partial: bool = False
    """Some parameters are used by rank 0 alone, and one by no rank."""
    mixed: bool = False
    """Parameters of two types."""
    bad_step: int | None = None
    """In this step the last rank sees NaN."""

    @property
    def tolerance(self) -> float:
        return 1e-4 if self.mixed else 1e-9


CASES = {
    "one sample": Case(),
    "one sample, small buckets": Case("small buckets"),
    "one sample, own gradients": Case("own gradients"),
    "one sample, bare": Case("bare"),
    "three samples": Case(mc_samples=3),
    "two samples, bare": Case("bare", mc_samples=2),
    "antithetic": Case("small buckets", mc_samples=4, antithetic=True),
    "antithetic, bare": Case("bare", mc_samples=4, antithetic=True),
    "gradsq": Case(hess_approx="gradsq"),
    "gradsq, two samples": Case("small buckets", mc_samples=2, hess_approx="gradsq"),
    "gradsq, bare": Case("bare", hess_approx="gradsq"),
    "fixed Hessian": Case("small buckets", mc_samples=2, fixed_hessian=True),
    "fixed Hessian, bare": Case("bare", fixed_hessian=True),
    "accumulated": Case(accumulate=True),
    "accumulated, two samples": Case("small buckets", accumulate=True, mc_samples=2),
    "accumulated, own gradients": Case("own gradients", accumulate=True),
    "partly used": Case("small buckets", partial=True),
    "partly used, two samples": Case("own gradients", mc_samples=2, partial=True),
    "partly used, bare": Case("bare", partial=True),
    "partly used, bare, two samples": Case("bare", mc_samples=2, partial=True),
    "mixed types": Case(mixed=True),
    "mixed types, bare": Case("bare", mixed=True),
    "NaN on one rank": Case(bad_step=2),
    "NaN on one rank, antithetic": Case("small buckets", mc_samples=2, antithetic=True, bad_step=2),
    "NaN on one rank, bare": Case("bare", bad_step=2),
    "shared": Case(per_rank=False),
    "shared, antithetic": Case("small buckets", per_rank=False, mc_samples=4, antithetic=True),
    "shared, gradsq": Case(per_rank=False, mc_samples=2, hess_approx="gradsq"),
}


class Net(nn.Module):
    """A convolution laid out as channels last, and linear layers."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, dtype=torch.float64).to(memory_format=torch.channels_last)
        self.head = nn.Linear(64, 3, dtype=torch.float32 if case.mixed else torch.float64)
        if case.partial:
            self.unused = nn.Parameter(torch.ones(5, dtype=torch.float64))
            self.extra = nn.Linear(64, 3, dtype=torch.float64)

    def forward(self, images_BCHW: Tensor, rank: int) -> Tensor:
        features_BF = torch.tanh(self.conv(images_BCHW)).flatten(1)
        logits_BC: Tensor = self.head(features_BF.to(self.head.weight.dtype)).double()
        if rank == 0 and hasattr(self, "extra"):
            logits_BC = logits_BC + self.extra(features_BF)
        return logits_BC


def build_net(case: Case) -> Net:
    torch.manual_seed(0)
    return Net(case)


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """(images_BCHW, labels_B) of each step."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(NUM_STEPS):
        images_BCHW = torch.randn(BATCH_SIZE, 2, 6, 6, generator=generator, dtype=torch.float64)
        yield images_BCHW, torch.randint(3, (BATCH_SIZE,), generator=generator)


def share_of(rank: int, world_size: int, images_BCHW: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
    """Every world_size-th example."""
    mine = slice(rank, None, world_size)
    return images_BCHW[mine], labels_B[mine]


def loss_of(logits_BC: Tensor, labels_B: Tensor, world_size: int) -> Tensor:
    """Its mean over the ranks is the mean over the batch."""
    return cross_entropy(logits_BC, labels_B, reduction="sum") * (world_size / BATCH_SIZE)


def reference(case: Case, world_size: int) -> list[Tensor]:
    """Mean, momentum and Hessian of all parameters after the last step."""
    net = build_net(case)
    num_ranks = world_size if case.per_rank else 1  # shared noise: one rank with the whole batch
    mean = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    momentum = {name: torch.zeros_like(m) for name, m in mean.items()}
    hess = {name: torch.full_like(m, HESS_INIT) for name, m in mean.items()}
    num_updates = 0
    for step, batch in enumerate(batches()):
        if step == case.bad_step:
            continue
        num_updates += 1
        grads, estimates = _averages(case, net, (mean, hess), step, (num_ranks, batch))
        for name, grad in grads.items():
            h = hess[name]
            momentum[name] = BETA1 * momentum[name] + (1 - BETA1) * grad
            if not case.fixed_hessian:
                f = estimates[name]
                hess[name] = BETA2 * h + (1 - BETA2) * f + 0.5 * (1 - BETA2) ** 2 * (h - f) ** 2 / (h + DECAY)
            direction = momentum[name] / (1 - BETA1**num_updates) + DECAY * mean[name]
            mean[name] = mean[name] - LR * (HESS_INIT + DECAY) * direction / (hess[name] + DECAY)
    return [state[name] for name in mean for state in (mean, momentum, hess)]


def _averages(
    case: Case,
    net: Net,
    posterior: tuple[dict[str, Tensor], dict[str, Tensor]],
    step: int,
    work: tuple[int, tuple[Tensor, Tensor]],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """ḡ and f over all samples of all ranks, of the parameters that any rank uses."""
    (mean, hess), (num_ranks, (images_BCHW, labels_B)) = posterior, work
    used = [name for name in mean if name != "unused"]
    grads, estimates = ({name: torch.zeros_like(mean[name]) for name in used} for _ in range(2))
    draws = [(sample, rank) for sample in range(case.mc_samples) for rank in range(num_ranks)]
    for sample, rank in draws:
        number, sign = (sample // 2, (-1) ** sample) if case.antithetic else (sample, 1)
        key = DrawKey(SEED, Stream.TRAINING, step, number, rank)
        sigma = {name: 1 / (ESS * (hess[name] + DECAY)).sqrt() for name in mean}
        noise = {
            name: sign * sigma[name] * seeded_normal(m, key, index) for index, (name, m) in enumerate(mean.items())
        }
        theta = {name: (m + noise[name]).requires_grad_() for name, m in mean.items()}
        mine_BCHW, mine_B = share_of(rank, num_ranks, images_BCHW, labels_B)
        loss = loss_of(functional_call(net, theta, (mine_BCHW, rank)), mine_B, num_ranks)
        found = torch.autograd.grad(loss, [theta[name] for name in used], allow_unused=True)
        for name, grad in zip(used, found, strict=True):
            if grad is None:
                continue
            estimate = ESS * (hess[name] + DECAY) * noise[name] * grad
            grads[name] += grad / len(draws)
            estimates[name] += (estimate if case.hess_approx == "price" else ESS * grad**2) / len(draws)
    return grads, estimates
