"""One rank of test_ivon_ranks: trains all cases on its share of each batch, and saves what it ended with.

Run as `ivon_one_rank.py RANK WORLD_SIZE FOLDER`; the ranks find each other through a file in FOLDER.
"""

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.distributed.ivon_cases import (
    BETA1,
    BETA2,
    CASES,
    DECAY,
    ESS,
    HESS_INIT,
    LR,
    SEED,
    Case,
    Net,
    batches,
    build_net,
    loss_of,
    share_of,
)
from trainer.ddp import without_averaging, without_compiler, wrap
from trainer.optim import rank_average
from trainer.optim.ivon import IVON
from trainer.ranks import Ranks


@dataclass(frozen=True)
class Rank:
    """This process."""

    rank: int
    world_size: int

    def learner(self, case: Case, *, seed: int = SEED, registered: bool = True) -> tuple[Net, nn.Module, IVON]:
        """A network, the model around it, and its optimizer."""
        net = build_net(case)
        model = net if case.model == "bare" else self.wrapped(net, case)
        options: dict[str, Any] = {"hess_init": HESS_INIT, "beta1": BETA1, "beta2": BETA2, "weight_decay": DECAY}
        with without_compiler():
            optimizer = IVON(
                net.parameters(),
                lr=LR,
                ess=ESS,
                mc_samples=case.mc_samples,
                hess_approx=case.hess_approx,
                fixed_hessian=case.fixed_hessian,
                antithetic=case.antithetic,
                sync=case.per_rank,
                seed=seed,
                **options,
            )
        if case.per_rank and registered:
            rank_average.register(model, optimizer)
        return net, model, optimizer

    def wrapped(self, net: Net, case: Case) -> nn.Module:
        if case.model == "ddp":
            return wrap(net, Ranks(self.rank, self.world_size, torch.device("cpu")))
        as_view = case.model == "small buckets"
        with without_compiler():
            return DistributedDataParallel(
                net, bucket_cap_mb=1e-4, gradient_as_bucket_view=as_view, find_unused_parameters=case.partial
            )

    def loss(self, model: nn.Module, images_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        return loss_of(model(images_BCHW, self.rank), labels_B, self.world_size)

    def share(self, images_BCHW: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        return share_of(self.rank, self.world_size, images_BCHW, labels_B)

    def train(self, case: Case, model: nn.Module, optimizer: IVON, steps: range) -> None:
        for step, batch in enumerate(batches()):
            if step not in steps:
                continue
            images_BCHW, labels_B = self.share(*batch)
            if step == case.bad_step and self.rank == self.world_size - 1:
                images_BCHW = images_BCHW * torch.nan
            for _ in range(case.mc_samples):
                optimizer.zero_grad()
                with optimizer.sampled_params(train=True):
                    if case.accumulate:
                        with without_averaging(model):
                            self.loss(model, images_BCHW[1:], labels_B[1:]).backward()
                    rest = slice(0, 1 if case.accumulate else None)
                    self.loss(model, images_BCHW[rest], labels_B[rest]).backward()
            optimizer.step()

    def result(self, case: Case, **options: Any) -> list[Tensor]:
        net, model, optimizer = self.learner(case, **options)
        self.train(case, model, optimizer, range(5))
        assert optimizer.num_skipped_steps == (case.bad_step is not None), case
        return state_of(net, optimizer)

    def resumed(self, case: Case) -> list[Tensor]:
        """Trained in two parts, the second by another optimizer, from rank 0's file."""
        net, model, optimizer = self.learner(case)
        self.train(case, model, optimizer, range(2))
        saved = io.BytesIO()
        torch.save((net.state_dict(), optimizer.state_dict()), saved)
        files: list[Any] = [saved.getvalue()]
        dist.broadcast_object_list(files)
        net, model, optimizer = self.learner(case)
        weights, state = torch.load(io.BytesIO(files[0]), weights_only=True)
        net.load_state_dict(weights)
        optimizer.load_state_dict(state)
        self.train(case, model, optimizer, range(2, 5))
        return state_of(net, optimizer)

    def plain_gradients(self, case: Case) -> list[Tensor]:
        """Of a backward pass outside of any sample, before, between and after steps; then the result of the steps."""
        net, model, optimizer = self.learner(case)
        batch = self.share(*next(batches()))
        found = []
        for steps in (range(0), range(2), range(2, 5)):
            self.train(case, model, optimizer, steps)
            optimizer.zero_grad()
            self.loss(model, *batch).backward()
            found += [p.detach().clone() for p in net.parameters()]
            found += [p.grad.clone() for p in net.parameters() if p.grad is not None]
        return [*found, *state_of(net, optimizer)]

    def second_backward(self, case: Case) -> str:
        """What is said about two averaged backward passes in one sample."""
        _, model, optimizer = self.learner(case)
        batch = self.share(*next(batches()))
        try:
            with optimizer.sampled_params(train=True):
                self.loss(model, *batch).backward()
                self.loss(model, *batch).backward()
        except RuntimeError as error:
            return str(error)
        return ""

    def compiled(self, *, is_bare: bool) -> list[Tensor]:
        """Of a network large enough for the fused kernels, with noise that they make."""
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 64, 600))
        net.to(memory_format=torch.channels_last)
        model = net if is_bare else wrap(net, Ranks(self.rank, self.world_size, torch.device("cpu")))
        with without_compiler():
            optimizer = IVON(net.parameters(), lr=LR, ess=ESS, beta2=BETA2, sync=True)
        assert optimizer.state_dict()["ivon"]["noise"] == "philox"
        rank_average.register(model, optimizer)
        generator = torch.Generator().manual_seed(self.rank)
        for _ in range(2):
            optimizer.zero_grad()
            with optimizer.sampled_params(train=True):
                model(torch.randn(6, 4, 8, 8, generator=generator)).square().mean().backward()
            optimizer.step()
        return state_of(net, optimizer)


def state_of(net: nn.Module, optimizer: IVON) -> list[Tensor]:
    """Mean, momentum and Hessian of each parameter; what was never updated is as it began."""
    states = []
    for p in net.parameters():
        momentum, hess = (optimizer.state[p][name] for name in ("momentum", "hess"))
        states += [p.detach(), momentum, hess]
    return [state.clone() for state in states]


def main(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world_size)
    this = Rank(rank, world_size)
    results: dict[str, Any] = {name: this.result(case) for name, case in CASES.items()}
    # `partial` has DDP keep its first buckets. Else it orders them anew after the first step, a resumed run later than
    # one that went through, and from three ranks on the order of a sum depends on the place in the bucket.
    small, bare = Case("small buckets", mc_samples=2, partial=True), Case("bare")
    results["resumed"] = [this.resumed(small), this.result(small)]
    results["resumed, bare"] = [this.resumed(bare), this.result(bare)]
    results["plain backward"] = this.plain_gradients(Case("small buckets", mc_samples=2))
    results["not registered"] = this.result(Case(), registered=False)
    results["another seed on each rank"] = this.result(Case(per_rank=False), seed=rank)
    results["compiled"] = [this.compiled(is_bare=is_bare) for is_bare in (False, True)]
    results["second backward"] = this.second_backward(Case())
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
