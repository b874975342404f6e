"""IVON, the improved variational online Newton method (Shen et al. 2024, Alg. 1): pure rules, then a thin Optimizer.

q = N(m, diag σ²), σ² = 1/(λ(h+δ)): m the weights, h the diagonal Hessian, λ = ess, δ = weight_decay. One step:

    θ = m + σe, e ~ N(0, I);  ĝ = gradient at θ            for each MC sample
    g ← β₁g + (1-β₁)·mean(ĝ)                               next_momentum
    f = λ(h+δ)·mean(σe⊙ĝ) = mean(e⊙ĝ)/σ                    price
    h ← β₂h + (1-β₂)f + ½(1-β₂)²(h-f)²/(h+δ)               next_hessian
    m ← m - lr·(h₀+δ)·clip((g/(1-β₁ᵗ) + δm)/(h+δ), ±ξ)     next_mean

On several ranks: give each the same seed. All draw the same noise, so DDP's ordinary averaging of gradients averages
e⊙ĝ too, and the result doesn't depend on the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainer.optim.noise import DrawKey, NoiseSource, Stream, seeded_normal
from trainer.optim.posterior import Factor, Posterior, standard_deviation

LARGEST_GRADIENT = 1e12
"""A step with a larger gradient element is skipped like one with NaN: squaring its `price` could overflow float32."""


# --------------------------------------------------------------------------------------------------------- pure rules


def price(noise: Tensor, grad: Tensor, sigma: Tensor) -> Tensor:
    """e⊙ĝ/σ, e ~ N(0, I): an unbiased estimate of the diagonal Hessian by the reparameterisation ("price") trick."""
    return noise * grad / sigma


def next_momentum(momentum: Tensor, grad: Tensor, beta1: float) -> Tensor:
    """g ← β₁g + (1-β₁)ḡ."""
    return torch.lerp(momentum, grad, 1 - beta1)


def next_hessian(hess: Tensor, estimate: Tensor, weight_decay: float, beta2: float) -> Tensor:
    """h ← β₂h + (1-β₂)f + ½(1-β₂)²(h-f)²/(h+δ). The last term keeps h+δ at no less than half its old value."""
    change = (1 - beta2) * (estimate - hess)
    return hess + change + 0.5 * change.square() / (hess + weight_decay)


@dataclass(frozen=True)
class MeanStep:
    """Constants of a step of the mean."""

    lr: float
    """Learning rate, with the factor h₀+δ if the rate is rescaled."""
    weight_decay: float
    clip_radius: float


def next_mean(mean: Tensor, momentum: Tensor, hess: Tensor, debias: Tensor | float, step: MeanStep) -> Tensor:
    """m ← m - lr·clip((g/debias + δm)/(h+δ), ±ξ), with the new g and h; debias is 1-β₁ᵗ."""
    direction = (momentum / debias + step.weight_decay * mean) / (hess + step.weight_decay)
    if step.clip_radius < math.inf:
        direction = direction.clamp(-step.clip_radius, step.clip_radius)
    return mean - step.lr * direction


# ---------------------------------------------------------------------------------------------------------- optimizer


class _Gradient(NamedTuple):
    """A parameter's gradient, and where the parameter stands."""

    parameter: Tensor
    group: int
    """Its group's position among the groups."""
    number: int
    """Its position among all parameters: names its noise."""
    value: Tensor


@dataclass
class _Samples:
    """The MC samples taken since the last step."""

    count: int = 0
    scales: list[tuple[float, float]] = field(default_factory=list)
    """(λ, δ) of each group when the newest sample was drawn: σ stays that of the sample if a schedule moves them."""
    grads: dict[Tensor, Tensor] = field(default_factory=dict)
    """Σ ĝ by parameter; only used with several samples a step."""
    prices: dict[Tensor, Tensor] = field(default_factory=dict)
    """Σ e⊙ĝ/σ by parameter; only used with several samples a step."""


class IVON(Optimizer):
    """IVON with the arguments and the use of the package `ivon-opt`; the mean is in the parameters.

        for _ in range(optimizer.mc_samples):
            optimizer.zero_grad()
            with optimizer.sampled_params(train=True):
                loss(model(x), y).backward()
        optimizer.step()

    Parameters that are frozen get no noise; those without a gradient don't move. A gradient that isn't finite skips the
    step, and `num_skipped_steps` counts it. Memory: g and h, and one copy of the mean inside `sampled_params`; with
    several samples also their summed gradients and prices. Save `state_dict` between steps: it holds all that the next
    step depends on.
    """

    def __init__(
        self,
        params: Any,  # torch's own ParamsT, which mypy can't express for groups
        lr: float,
        ess: float,
        *,
        hess_init: float = 1.0,
        beta1: float = 0.9,
        beta2: float = 0.99999,
        weight_decay: float = 1e-4,
        mc_samples: int = 1,
        clip_radius: float = math.inf,
        debias: bool = True,
        rescale_lr: bool = True,
        antithetic: bool = False,
        seed: int = 0,
        noise: NoiseSource = seeded_normal,
    ) -> None:
        """`antithetic` draws samples in pairs m ± σe; `noise` is where e comes from (tests feed their own)."""
        if mc_samples < 1 or (antithetic and mc_samples % 2):
            raise ValueError(f"mc_samples {mc_samples} must be at least 1, and even with antithetic")
        self.mc_samples = mc_samples
        self._antithetic = antithetic
        self._seed = seed
        self._noise = noise
        self._num_steps = 0  # steps tried, the skipped ones too: names the noise
        self._num_predictions = 0
        self._num_skipped = 0  # up to the last load_state_dict
        self._num_skipped_since: Tensor | None = None  # on the device, so that counting needs no synchronisation
        self._samples = _Samples()
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
        _check({**self.defaults, **param_group})
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
        return Posterior(tuple(factors), self._noise)

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
        if samples.count == self.mc_samples:
            raise RuntimeError(
                f"all mc_samples ({self.mc_samples}) of this step are taken: call step() before the next"
            )
        samples.scales = [(group["ess"], group["weight_decay"]) for group in self.param_groups]
        try:
            with self.posterior().perturbed(*self._draw(samples.count)):
                yield
        except BaseException:
            self._samples = _Samples()
            raise
        if self.mc_samples > 1:
            self._add_sample()
        samples.count += 1

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients; with one sample a step also that sample, whose gradient they are."""
        if self.mc_samples == 1:
            self._samples = _Samples()
        super().zero_grad(set_to_none)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update mean and Hessian from the samples taken since the last step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._samples.count == 0:
            raise RuntimeError("step() needs gradients taken inside `with optimizer.sampled_params(train=True)`")
        gradients = list(self._mean_gradients())
        usable = self._check_finite(gradients)
        for gradient in gradients:
            self._update(gradient, usable.to(gradient.parameter.device))
        self._num_steps += 1
        self._samples = _Samples()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """torch's state dict with one more entry, `ivon`: what the samples of the next step depend on."""
        counters = {
            "seed": self._seed,
            "mc_samples": self.mc_samples,
            "antithetic": self._antithetic,
            "num_steps": self._num_steps,
            "num_predictions": self._num_predictions,
            "num_skipped": self.num_skipped_steps,
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
        self._num_steps = counters["num_steps"]
        self._num_predictions = counters["num_predictions"]
        self._num_skipped, self._num_skipped_since = counters["num_skipped"], None
        self._samples = _Samples()
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
            state["step"] = torch.zeros((), dtype=torch.float64, device=parameter.device)
            state["momentum"] = torch.zeros_like(parameter, requires_grad=False)
            state["hess"] = torch.full_like(parameter, hess_init, requires_grad=False)
        return state

    def _draw(self, sample: int) -> tuple[DrawKey, float]:
        """Noise and sign of a training sample; antithetic samples 2i and 2i+1 are m + σe and m - σe with the same e."""
        if not self._antithetic:
            return DrawKey(self._seed, Stream.TRAINING, self._num_steps, sample), 1.0
        return DrawKey(self._seed, Stream.TRAINING, self._num_steps, sample // 2), -1.0 if sample % 2 else 1.0

    def _gradients(self) -> Iterator[_Gradient]:
        """The gradients that the last sample left in the parameters."""
        for group, index, parameter in self._trainable():
            if parameter.grad is not None and parameter.numel():
                yield _Gradient(parameter, group, index, parameter.grad)

    def _mean_gradients(self) -> Iterator[_Gradient]:
        """ḡ, over the samples."""
        if self.mc_samples == 1:
            yield from self._gradients()
            return
        for group, index, parameter in self._trainable():
            if parameter in self._samples.grads:
                yield _Gradient(parameter, group, index, self._samples.grads[parameter].div_(self._samples.count))

    @torch.no_grad()
    def _add_sample(self) -> None:
        """Move the newest of several samples' gradients out of the parameters, into the sums."""
        samples = self._samples
        for gradient in self._gradients():
            parameter = gradient.parameter
            estimate = self._price_of(gradient, samples.count)
            if parameter in samples.grads:
                samples.grads[parameter].add_(gradient.value)
                samples.prices[parameter].add_(estimate)
            else:
                samples.grads[parameter] = gradient.value.clone()  # DDP may own the gradient's memory
                samples.prices[parameter] = estimate
            parameter.grad = None

    def _price_of(self, gradient: _Gradient, sample: int) -> Tensor:
        """e⊙ĝ/σ of one sample, whose noise is drawn again rather than kept."""
        ess, weight_decay = self._samples.scales[gradient.group]
        sigma = standard_deviation(self.state[gradient.parameter]["hess"], ess, weight_decay)
        draw, sign = self._draw(sample)
        return price(sign * self._noise(gradient.parameter, draw, gradient.number), gradient.value, sigma)

    def _mean_price(self, gradient: _Gradient) -> Tensor:
        """f, over the samples."""
        if self.mc_samples == 1:
            return self._price_of(gradient, 0)
        return self._samples.prices[gradient.parameter].div_(self._samples.count)

    def _check_finite(self, gradients: list[_Gradient]) -> Tensor:
        """Whether the step can be made, as a tensor on the device; counts it as skipped if not."""
        if not gradients:
            return torch.ones((), dtype=torch.bool)
        device = gradients[0].parameter.device
        largest = torch.stack([gradient.value.abs().amax().to(device) for gradient in gradients]).amax()
        usable = largest < LARGEST_GRADIENT  # false for NaN
        skipped = (~usable).long()
        self._num_skipped_since = skipped if self._num_skipped_since is None else self._num_skipped_since + skipped
        return usable

    def _update(self, gradient: _Gradient, usable: Tensor) -> None:
        """Lines 2 to 5 for one parameter, or nothing where `usable` is false."""
        mean, group, state = gradient.parameter, self.param_groups[gradient.group], self.state[gradient.parameter]
        decay, rate = group["weight_decay"], group["lr"]
        if group["rescale_lr"]:
            rate *= group["hess_init"] + decay
        step = state["step"] + usable
        debias = (1 - group["beta1"] ** step).to(mean.dtype) if group["debias"] else 1.0
        momentum = next_momentum(state["momentum"], gradient.value, group["beta1"])
        hess = next_hessian(state["hess"], self._mean_price(gradient), decay, group["beta2"])
        moved = next_mean(mean, momentum, hess, debias, MeanStep(rate, decay, group["clip_radius"]))
        for old, new in ((state["step"], step), (state["momentum"], momentum), (state["hess"], hess), (mean, moved)):
            old.copy_(torch.where(usable, new, old))


def _check(options: dict[str, Any]) -> None:
    """Refuse hyperparameters that have no meaning, naming the field, its value and what is allowed."""
    allowed = {
        "lr": (options["lr"] >= 0, "at least 0"),
        "ess": (options["ess"] > 0, "above 0"),
        "hess_init": (options["hess_init"] > 0, "above 0"),
        "beta1": (0 <= options["beta1"] < 1, "in [0, 1)"),
        "beta2": (0 <= options["beta2"] <= 1, "in [0, 1]"),
        "weight_decay": (options["weight_decay"] >= 0, "at least 0"),
        "clip_radius": (options["clip_radius"] > 0, "above 0"),
    }
    for name, (holds, range_) in allowed.items():
        if not holds:
            raise ValueError(f"{name} {options[name]} must be {range_}")
