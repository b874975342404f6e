"""IVON, the improved variational online Newton method (Shen et al. 2024, Alg. 1), as an Optimizer.

q = N(m, diag σ²), σ² = 1/(λ(h+δ)): m the weights, h the diagonal Hessian, λ = ess, δ = weight_decay. One step:

    θ = m + σe, e ~ N(0, I);  ĝ = gradient at θ            for each MC sample
    g ← β₁g + (1-β₁)·mean(ĝ)                               next_momentum
    f = λ(h+δ)·mean(σe⊙ĝ) = mean(e⊙ĝ)/σ                    price;  or λ·mean(ĝ²)    squared_gradient
    h ← β₂h + (1-β₂)f + ½(1-β₂)²(h-f)²/(h+δ)               next_hessian
    m ← m - lr·(h₀+δ)·clip((g/(1-β₁ᵗ) + δm)/(h+δ), ±ξ)     next_mean

The rules are in ivon_rules.py; what touches every weight is in kernels/. Noise is a pure function of (seed, step, MC
sample, rank, parameter), so that nothing but counters has to be saved.

On several ranks there are two valid ways. Noise that all ranks share (the default): DDP's ordinary averaging of
gradients averages e⊙ĝ too, and results do not depend on the number of ranks. Or `sync=True`: each rank draws its own,
and both ĝ and f are averaged over ranks, so that R ranks give R MC samples (see rank_average.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainer.optim.factor import Factor
from trainer.optim.ivon_rules import LARGEST, HessApprox, Rule, check, largest_squarable_gradient, squared_gradient
from trainer.optim.ivon_samples import Gradient, Samples
from trainer.optim.kernels import Draw, Kernels, Move, kernels_for
from trainer.optim.kernels.eager import EagerKernels
from trainer.optim.layout import follow
from trainer.optim.noise import DrawKey, NoiseSource, Stream, warn_of_other_noise
from trainer.optim.posterior import MeanStore, Posterior
from trainer.optim.rank_average import Averages, average_now, num_ranks, this_rank


class IVON(Optimizer):
    """IVON with the arguments and the use of the package `ivon-opt`; the mean is in the parameters.

        for _ in range(optimizer.mc_samples):
            optimizer.zero_grad()
            with optimizer.sampled_params(train=True):
                loss(model(x), y).backward()
        optimizer.step()

    Parameters that are frozen get no noise; those without a gradient don't move. A gradient that isn't finite skips the
    step, and `num_skipped_steps` counts it. Several backward passes inside one `sampled_params` add up, as usual.
    Memory: g and h, and one copy of the mean; with several samples also their summed gradients and estimates. Save
    `state_dict` between steps: it holds all that the next step depends on.
    """

    def __init__(  # noqa: PLR0917 (ivon-opt's own order, so that a call of it works here)
        self,
        params: Any,  # torch's own ParamsT, which mypy can't express for groups
        lr: float,
        ess: float,
        hess_init: float = 1.0,
        beta1: float = 0.9,
        beta2: float = 0.99999,
        weight_decay: float = 1e-4,
        mc_samples: int = 1,
        hess_approx: HessApprox = "price",
        clip_radius: float = math.inf,
        sync: bool = False,
        debias: bool = True,
        rescale_lr: bool = True,
        *,
        fixed_hessian: bool = False,
        antithetic: bool = False,
        seed: int = 0,
        noise: NoiseSource | None = None,
    ) -> None:
        """The first thirteen are ivon-opt's, by name and place.

        `sync`: each rank of the default process group draws its own noise, and gradients and Hessian estimates are
        averaged over ranks: at the end of each sample, or under DDP by the hook that `rank_average.register` sets and
        that DDP needs then, lest it average the gradients alone. Without a group it changes nothing. `fixed_hessian`
        leaves h at h₀. `antithetic` draws samples in pairs m ± σe. `noise` is where e comes from: tests feed their own.
        """
        if mc_samples < 1 or (antithetic and mc_samples % 2):
            raise ValueError(f"mc_samples {mc_samples} must be at least 1, and even with antithetic")
        if hess_approx not in {"price", "gradsq"}:
            raise ValueError(f"hess_approx {hess_approx!r} must be 'price' or 'gradsq'")
        self.mc_samples = mc_samples
        self._hess_approx = hess_approx
        self.sync = sync
        self._fixed_hessian = fixed_hessian
        self._antithetic = antithetic
        self._seed = seed
        self._kernels: Kernels | None = None if noise is None else EagerKernels(noise)
        self._store = MeanStore()
        self._num_steps = 0  # steps tried, the skipped ones too: names the noise
        self._num_predictions = 0
        self._num_skipped = 0  # up to the last load_state_dict
        self._num_skipped_since: Tensor | None = None  # on the device, so that counting needs no synchronisation
        self._samples = Samples()
        defaults = {
            "lr": lr,
            "ess": ess,
            "hess_init": hess_init,
            "beta1": beta1,
            "beta2": beta2,
            "weight_decay": weight_decay,
            "clip_radius": clip_radius,
            "debias": debias,
            "rescale_lr": rescale_lr,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with their own hyperparameters where given."""
        check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @property
    def num_skipped_steps(self) -> int:
        """Steps skipped because a gradient wasn't finite. Reading it waits for the device."""
        return self._num_skipped + (0 if self._num_skipped_since is None else int(self._num_skipped_since.item()))

    def posterior(self) -> Posterior:
        """The posterior as it stands, over the parameters that aren't frozen."""
        factors = []
        for group, index, parameter in self._trainable():
            options = self.param_groups[group]
            hess = self._state(parameter, options["hess_init"])["hess"]
            factors.append(Factor(parameter, index, hess, options["ess"], options["weight_decay"]))
        return Posterior(tuple(factors), self._find_kernels(), self._store)

    @contextmanager
    def sampled_params(self, train: bool = False) -> Iterator[None]:
        """The weights are a sample from the posterior inside, and the mean again after, even if an exception passes.

        With `train`, the gradients found at the end belong to this sample and count in the next `step`. An exception
        discards the samples taken so far for that step.
        """
        if not train:
            self._num_predictions += 1
            with self.posterior().perturbed(DrawKey(self._seed, Stream.PREDICTION, self._num_predictions, 0)):
                yield
            return
        samples = self._samples
        if samples.is_open:
            raise RuntimeError("a training sample is open already: leave its sampled_params before the next")
        if samples.count == self.mc_samples:
            raise RuntimeError(
                f"all mc_samples ({self.mc_samples}) of this step are taken: call step() before the next"
            )
        posterior = self.posterior()
        samples.factors = {factor.parameter: factor for factor in posterior.factors}
        samples.kernels, samples.averages = posterior.kernels, {}
        draw = self._draw(samples.count)
        try:
            with posterior.perturbed(draw.key, draw.sign):
                samples.is_open = True
                yield
            self._add_sample()
        except BaseException:
            self._samples = Samples()
            raise

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients; with one sample a step also that sample, whose gradient they are, unless it is open."""
        if self._samples.is_open:
            self._samples.averages = {}  # of the gradients that go
        elif self.mc_samples == 1:
            self._samples = Samples()
        super().zero_grad(set_to_none)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update mean and Hessian from the samples taken since the last step.

        `closure` takes one sample and returns its loss; it is called for each of `mc_samples`, and the mean returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = sum(closure() for _ in range(self.mc_samples)) / self.mc_samples
        samples = self._samples
        if samples.is_open or samples.kernels is None:
            raise RuntimeError(
                "step() needs gradients taken inside `with optimizer.sampled_params(train=True)`, and stands after it"
            )
        gradients = list(self._mean_gradients())
        if gradients:
            # Estimates too: gradients of several samples or ranks can cancel where their estimates overflow.
            estimates = [f for g in gradients if (f := samples.estimates.get(g.parameter)) is not None]
            usable = samples.kernels.usable([*(gradient.value for gradient in gradients), *estimates], self._largest())
            self._count(gradients, usable)
            draw = self._draw(0)
            for number, group in enumerate(self.param_groups):
                moves = [self._move(gradient) for gradient in gradients if gradient.group == number]
                samples.kernels.update(moves, self._rule(group), draw, usable)
        self._num_steps += 1
        self._samples = Samples()
        return loss

    def needs_estimate(self, parameter: Tensor) -> bool:
        """Whether a training sample is open that needs this parameter's estimate of the Hessian."""
        return self._samples.is_open and not self._fixed_hessian and parameter in self._samples.factors

    def estimate(self, parameter: Tensor, grad: Tensor) -> Tensor:
        """f of the sample that is open, from this rank's gradient: what is averaged over ranks beside the gradient."""
        samples = self._samples
        assert samples.is_open
        assert samples.kernels is not None
        if parameter in samples.averages:
            raise RuntimeError(
                "a second backward pass would mix this rank's gradient with the average of the first: inside one"
                " sampled_params, put all backward passes but the last under DDP's no_sync()"
            )
        factor = samples.factors[parameter]
        if self._hess_approx == "gradsq":
            return squared_gradient(grad, factor.ess)
        return samples.kernels.price(factor, self._draw(samples.count), grad)

    def take_averages(self, averages: Averages) -> None:
        """Take the open sample's estimates, averaged over ranks like the gradients of these parameters."""
        self._samples.averages |= averages

    def state_dict(self) -> dict[str, Any]:
        """torch's state dict with one more entry, `ivon`: what the next step and its samples depend on beside it."""
        counters = {
            "seed": self._seed,
            "mc_samples": self.mc_samples,
            "antithetic": self._antithetic,
            "hess_approx": self._hess_approx,
            "fixed_hessian": self._fixed_hessian,
            "num_steps": self._num_steps,
            "num_predictions": self._num_predictions,
            "num_skipped": self.num_skipped_steps,
            "noise": self._find_kernels().noise_name,
        }
        return {**super().state_dict(), "ivon": counters}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue as the optimizer that was saved: hyperparameters, noise, momentum and Hessian, on any device."""
        if "ivon" not in state_dict:
            raise ValueError("this state dict has no entry 'ivon': another optimizer saved it")
        super().load_state_dict(state_dict)
        counters = state_dict["ivon"]
        self._seed = counters["seed"]
        self.mc_samples = counters["mc_samples"]
        self._antithetic = counters["antithetic"]
        self._hess_approx = counters["hess_approx"]
        self._fixed_hessian = counters["fixed_hessian"]
        self._num_steps = counters["num_steps"]
        self._num_predictions = counters["num_predictions"]
        self._num_skipped, self._num_skipped_since = counters["num_skipped"], None
        self._samples = Samples()
        warn_of_other_noise(counters["noise"], self._find_kernels().noise_name)
        for parameter, state in self.state.items():  # perhaps saved on another device, or in another memory format
            state["step"] = state["step"].to(parameter.device, copy=True)  # torch shares it with the state dict
            for name in ("momentum", "hess"):
                state[name] = torch.empty_like(parameter).copy_(state[name])

    def _trainable(self) -> Iterator[tuple[int, int, Tensor]]:
        """(group, index, parameter) of those not frozen; the frozen ones are counted, so that no one's noise moves."""
        index = 0
        for position, group in enumerate(self.param_groups):
            for parameter in group["params"]:
                if parameter.requires_grad:
                    yield position, index, parameter
                index += 1

    def _state(self, parameter: Tensor, hess_init: float) -> dict[str, Tensor]:
        """momentum and hess, laid out like the parameter; step: its updates so far, which debias counts."""
        state: dict[str, Tensor] = self.state[parameter]
        if not state:
            with torch.inference_mode(False):  # a first prediction may well be in it; training could not write then
                state["step"] = torch.zeros((), dtype=torch.float64, device=parameter.device)
                state["momentum"] = torch.zeros_like(parameter, requires_grad=False)
                state["hess"] = torch.full_like(parameter, hess_init, requires_grad=False)
        for name in ("momentum", "hess"):
            follow(state[name], parameter)
        return state

    def _find_kernels(self) -> Kernels:
        return self._kernels or kernels_for([parameter for _, _, parameter in self._trainable()])

    def _draw(self, sample: int) -> Draw:
        """Noise and sign of a training sample; antithetic samples 2i and 2i+1 are m + σe and m - σe with the same e."""
        number, sign = (sample // 2, -1.0 if sample % 2 else 1.0) if self._antithetic else (sample, 1.0)
        rank = this_rank() if self.sync else 0
        return Draw(DrawKey(self._seed, Stream.TRAINING, self._num_steps, number, rank), sign)

    def _gradients(self) -> Iterator[Gradient]:
        """The gradients that the last sample left in the parameters."""
        for group, _, parameter in self._trainable():
            if parameter.grad is not None and parameter.numel():
                yield Gradient(parameter, group, parameter.grad)

    def _mean_gradients(self) -> Iterator[Gradient]:
        """ḡ, over the samples."""
        if self.mc_samples == 1:
            yield from self._gradients()
            return
        for group, _, parameter in self._trainable():
            if parameter in self._samples.grads:
                yield Gradient(parameter, group, self._samples.grads[parameter].div_(self._samples.count))

    @torch.no_grad()
    def _add_sample(self) -> None:
        """Close the sample: average it over ranks, and if it is one of several move it into the sums."""
        samples = self._samples
        if self.sync and num_ranks() > 1:
            left = [p for p in samples.factors if p.numel() and p not in samples.averages]
            samples.averages |= average_now(left, None if self._fixed_hessian else self.estimate)
        if self.mc_samples == 1:
            samples.estimates = {p: f for p, f in samples.averages.items() if f is not None}
        else:
            for gradient in self._gradients():
                self._add_gradient(gradient)
        samples.averages = {}
        samples.is_open = False
        samples.count += 1

    def _add_gradient(self, gradient: Gradient) -> None:
        samples, parameter = self._samples, gradient.parameter
        if parameter in samples.grads:
            samples.grads[parameter].add_(gradient.value)
        else:
            samples.grads[parameter] = gradient.value.clone()  # DDP may own the gradient's memory
        if not self._fixed_hessian:
            average = samples.averages.get(parameter)
            estimate = self.estimate(parameter, gradient.value) if average is None else average
            if parameter in samples.estimates:
                samples.estimates[parameter].add_(estimate)
            else:
                samples.estimates[parameter] = estimate
        parameter.grad = None

    def _move(self, gradient: Gradient) -> Move:
        """What the step knows of a parameter."""
        state = self.state[gradient.parameter]
        estimate = self._samples.estimates.get(gradient.parameter)
        if estimate is not None:
            estimate.div_(self._samples.count)
        return Move(
            factor=self._samples.factors[gradient.parameter],
            momentum=state["momentum"],
            step=state["step"],
            grad=gradient.value,
            estimate=estimate,
        )

    def _rule(self, group: dict[str, Any]) -> Rule:
        decay = group["weight_decay"]
        return Rule(
            lr=group["lr"] * (group["hess_init"] + decay if group["rescale_lr"] else 1.0),
            beta1=group["beta1"],
            beta2=group["beta2"],
            weight_decay=decay,
            clip_radius=group["clip_radius"],
            debias=group["debias"],
            hess_approx=self._hess_approx,
            fixed_hessian=self._fixed_hessian,
        )

    def _largest(self) -> float:
        """The size from which a gradient or an estimate makes the step unusable."""
        is_squared_later = self._hess_approx == "gradsq" and not (self._fixed_hessian or self._samples.estimates)
        if not is_squared_later:
            return LARGEST
        return largest_squarable_gradient(max(factor.ess for factor in self._samples.factors.values()))

    def _count(self, gradients: list[Gradient], usable: Tensor) -> None:
        """Count the step as one of each parameter's own, or as skipped: on the device, in a few launches."""
        steps = [self.state[gradient.parameter]["step"] for gradient in gradients]
        for device in {step.device for step in steps}:
            there = [step for step in steps if step.device == device]
            torch._foreach_add_(there, usable.to(device, torch.float64))
        skipped = (~usable).long()
        self._num_skipped_since = skipped if self._num_skipped_since is None else self._num_skipped_since + skipped
