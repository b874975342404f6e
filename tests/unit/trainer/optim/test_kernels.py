"""The compiled kernels do what the plain ones do, on the noise that they say they draw."""

import math

import pytest
import torch

from trainer.optim import kernels
from trainer.optim.factor import Factor
from trainer.optim.ivon import IVON
from trainer.optim.ivon_rules import Rule
from trainer.optim.kernels import LARGEST_GRADIENT, Draw, Move, kernels_for
from trainer.optim.kernels.cpu import CPUKernels
from trainer.optim.kernels.eager import EagerKernels
from trainer.optim.noise import DrawKey, Stream

COMPILED = CPUKernels()
PLAIN = EagerKernels(COMPILED.normal)
DRAW = Draw(DrawKey(seed=7, stream=Stream.TRAINING, step=3, sample=1), sign=-1.0)
SHAPES = [(), (1,), (1023,), (1024,), (1025,), (64, 3, 7, 7), (300_001,)]
RULE = Rule(
    lr=0.1,
    beta1=0.9,
    beta2=0.999,
    weight_decay=1e-3,
    clip_radius=math.inf,
    debias=True,
    hess_approx="price",
    fixed_hessian=False,
)


def factors(seed=0):
    """Parameters of many shapes, one of them channels_last; the pictures of two calls with one seed are equal."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index, shape in enumerate(SHAPES):
        parameter = torch.randn(shape, generator=generator)
        if parameter.dim() == 4:
            parameter = parameter.to(memory_format=torch.channels_last)
        hess = torch.empty_like(parameter).copy_(0.1 + torch.rand(shape, generator=generator))
        made.append(Factor(parameter, index, hess, ess=1e4 + index, weight_decay=2e-3))
    return made


def moves(*, with_estimates=False):
    generator = torch.Generator().manual_seed(1)
    made = []
    for factor in factors():
        like = factor.parameter
        normal = [
            torch.randn(like.shape, generator=generator) for _ in range(3)
        ]  # the gradient's layout is torch's own
        momentum = torch.empty_like(like).copy_(0.1 * normal[0])
        step = torch.tensor(5.0, dtype=torch.float64)
        estimate = normal[2] if with_estimates else None
        made.append(Move(factor, momentum, step, grad=0.1 * normal[1], estimate=estimate))
    return made


def assert_close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.stride() == b.stride()
        assert torch.allclose(a, b, rtol=2e-6, atol=1e-6)


def test_perturb_saves_the_means_and_moves_to_the_sample():
    ours, theirs = factors(), factors()
    means = [torch.empty_like(f.parameter) for f in ours]
    other_means = [torch.empty_like(f.parameter) for f in theirs]
    COMPILED.perturb(ours, means, DRAW)
    PLAIN.perturb(theirs, other_means, DRAW)
    for factor, mean in zip(factors(), means, strict=True):
        assert torch.equal(mean, factor.parameter)
    assert_close([f.parameter for f in ours], [f.parameter for f in theirs])
    assert not torch.allclose(ours[-1].parameter, means[-1], atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hess_approx": "gradsq"},
        {"fixed_hessian": True},
        {"clip_radius": 0.05},
        {"debias": False},
        {"beta2": 0.99999, "weight_decay": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("with_estimates", [False, True])
def test_update_is_that_of_the_rules(options, with_estimates):
    rule = Rule(**{**vars(RULE), **options})
    ours, theirs, before = (moves(with_estimates=with_estimates) for _ in range(3))
    COMPILED.update(ours, rule, DRAW, torch.tensor(True))
    PLAIN.update(theirs, rule, DRAW, torch.tensor(True))
    assert_close([m.factor.parameter for m in ours], [m.factor.parameter for m in theirs])
    assert_close([m.momentum for m in ours], [m.momentum for m in theirs])
    # The Hessian moves little: compare its change, not its value, so that a wrong 1-β₂ is seen.
    for a, b, old in zip(ours, theirs, before, strict=True):
        change, expected = a.factor.hess - old.factor.hess, b.factor.hess - old.factor.hess
        assert (change - expected).norm() <= 1e-3 * expected.norm() + 1e-7 * old.factor.hess.norm()
        assert bool(expected.norm() == 0) == rule.fixed_hessian


def test_an_unusable_step_changes_nothing():
    ours, before = moves(), moves()
    COMPILED.update(ours, RULE, DRAW, torch.tensor(False))
    for a, b in zip(ours, before, strict=True):
        assert torch.equal(a.factor.parameter, b.factor.parameter)
        assert torch.equal(a.factor.hess, b.factor.hess)
        assert torch.equal(a.momentum, b.momentum)


def test_price_is_that_of_the_rules():
    for move in moves():
        assert_close([COMPILED.price(move.factor, DRAW, move.grad)], [PLAIN.price(move.factor, DRAW, move.grad)])


@pytest.mark.parametrize("chosen", [COMPILED, PLAIN], ids=["compiled", "plain"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, LARGEST_GRADIENT, -1.1 * LARGEST_GRADIENT])
def test_one_bad_element_anywhere_makes_the_step_unusable(chosen, bad):
    grads = [torch.zeros(shape) for shape in SHAPES]
    assert bool(chosen.usable(grads))
    for grad in grads:
        flat = grad.view(-1)
        for place in {0, len(flat) // 2, len(flat) - 1}:
            flat[place] = bad
            assert not bool(chosen.usable(grads))
            flat[place] = 0.99 * LARGEST_GRADIENT
            assert bool(chosen.usable(grads))


def test_the_number_of_threads_changes_nothing():
    results = []
    before = torch.get_num_threads()
    try:
        for num_threads in (1, 2, 5):
            torch.set_num_threads(num_threads)
            ours = moves()
            COMPILED.update(ours, RULE, DRAW, torch.tensor(True))
            results.append([m.factor.parameter for m in ours])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_compiled_kernels_serve_large_dense_float32_models_on_the_cpu():
    large = torch.zeros(kernels.MIN_FUSED_WEIGHTS)
    assert isinstance(kernels_for([large]), CPUKernels)
    assert isinstance(kernels_for([large, torch.zeros(8, 4, 3, 3).to(memory_format=torch.channels_last)]), CPUKernels)
    for others in ([large[1:]], [large.double()], [large, torch.zeros(4, 4).t()], [large, torch.zeros(4).bfloat16()]):
        assert isinstance(kernels_for(others), EagerKernels)


def test_fifty_steps_of_ivon_are_the_same_by_both(monkeypatch):
    """From choosing the kernels to the end of the step, several samples and a schedule of λ and lr included."""
    monkeypatch.setattr(kernels, "MIN_FUSED_WEIGHTS", 1)
    ends = []
    for noise in (None, COMPILED.normal):
        generator = torch.Generator().manual_seed(3)
        weights = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in [(40, 30), (30,), (30, 5)]]
        inputs, targets = torch.randn(64, 40, generator=generator), torch.randn(64, 5, generator=generator)
        optimizer = IVON(weights, lr=0.1, ess=1000, beta2=0.99, mc_samples=2, antithetic=True, seed=4, noise=noise)
        for step in range(50):
            optimizer.param_groups[0].update(lr=0.1 / (1 + step), ess=1000 + step)
            for _ in range(2):
                optimizer.zero_grad()
                with optimizer.sampled_params(train=True):
                    hidden = torch.tanh(inputs @ weights[0] + weights[1])
                    (hidden @ weights[2] - targets).square().mean().backward()
            optimizer.step()
        assert optimizer.state_dict()["ivon"]["noise"] == ("philox" if noise is None else "own")
        ends.append([*weights, *(optimizer.state[w]["hess"] for w in weights)])
    for a, b in zip(*ends, strict=True):
        assert (a - b).norm() < 2e-5 * b.norm()


def test_resuming_with_other_noise_is_said():
    weights = torch.nn.Parameter(torch.zeros(kernels.MIN_FUSED_WEIGHTS))
    saved = IVON([weights], lr=0.1, ess=10).state_dict()
    saved["ivon"]["noise"] = "torch"
    with pytest.warns(UserWarning, match="drew its noise from 'torch' and goes on with 'philox'"):
        IVON([weights], lr=0.1, ess=10).load_state_dict(saved)
