"""IVON's Triton kernels do what the CPU's do: on a GPU, or with TRITON_INTERPRET=1 in Triton's interpreter."""

import os

import pytest
import torch
from kernel_cases import DRAW, RULE, RULES, assert_close, assert_moved_alike, assert_unchanged, factors, moves

from trainer.optim import ivon, kernels
from trainer.optim.ivon import IVON
from trainer.optim.ivon_rules import LARGEST, Rule
from trainer.optim.kernels import Draw, kernels_for
from trainer.optim.kernels.cpu import CPUKernels
from trainer.optim.kernels.eager import EagerKernels
from trainer.optim.noise import DrawKey, Stream

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
if not (IS_INTERPRETED or torch.cuda.is_available()):
    pytest.skip("needs a GPU (test_triton_interpreted.py runs the same on the CPU)", allow_module_level=True)
cuda = pytest.importorskip("trainer.optim.kernels.cuda", exc_type=ImportError)

SHAPES = [(), (1,), (255,), (1023,), (1025,), (2048,), (24, 10, 3, 3), (6000,)]
"""Around the lanes, the blocks and the chunks of noise, one and several of each."""
OURS, THEIRS = cuda.CUDAKernels(), CPUKernels()


@pytest.fixture
def launches(monkeypatch):
    """The kernels launched, in order."""
    seen = []
    launch = cuda._launch
    monkeypatch.setattr(cuda, "_launch", lambda kernel, *rest: (seen.append(kernel), launch(kernel, *rest)))
    return seen


@pytest.mark.parametrize(
    ("key", "index"),
    [
        (DrawKey(0, Stream.TRAINING, 0, 0), 0),
        (DrawKey(2**32, Stream.PREDICTION, 1, 1), 1),
        (DrawKey(2**64 - 5, Stream.LABEL_NOISE, 2**31 + 7, 2**12 - 1, 2**16 - 1), 2**20),
    ],
)
@pytest.mark.parametrize("size", [1, 5000])
def test_noise_is_that_of_the_cpu(key, index, size):
    parameter = torch.empty(size)
    ours = OURS.normal(parameter.to(DEVICE), key, index).cpu()
    assert (ours - THEIRS.normal(parameter, key, index)).abs().max() < 3e-6


def test_perturb_moves_all_weights_to_the_sample_in_one_launch(launches):
    ours, theirs = factors(SHAPES, DEVICE), factors(SHAPES)
    means, other_means = ([torch.empty_like(f.parameter) for f in made] for made in (ours, theirs))
    OURS.perturb(ours, means, DRAW)
    THEIRS.perturb(theirs, other_means, DRAW)
    assert launches == [cuda.cuda_device.perturb]
    assert all(torch.equal(mean.cpu(), other) for mean, other in zip(means, other_means, strict=True))
    assert_close([f.parameter for f in ours], [f.parameter for f in theirs])


def test_weights_at_odd_addresses_are_moved_too():
    """Views into one array, as DDP's buckets make of gradients: 4 bytes off what a thread loads at a time."""
    ours, theirs = factors([(3000,)], DEVICE), factors([(3000,)])
    array = torch.zeros(3002, device=DEVICE)
    parameter = array[1:-1].copy_(ours[0].parameter)
    moved = type(ours[0])(parameter, 0, ours[0].hess, ours[0].ess, ours[0].weight_decay)
    OURS.perturb([moved], [torch.empty_like(parameter)], DRAW)
    THEIRS.perturb(theirs, [torch.empty(3000)], DRAW)
    assert_close([parameter], [theirs[0].parameter])
    assert array[0] == array[-1] == 0


@pytest.mark.parametrize("options", RULES, ids=str)
@pytest.mark.parametrize("with_estimates", [False, True])
def test_update_is_that_of_the_cpu_in_one_launch(options, with_estimates, launches):
    rule = Rule(**{**vars(RULE), **options})
    ours, before = (moves(SHAPES, DEVICE, with_estimates=with_estimates) for _ in range(2))
    theirs = moves(SHAPES, with_estimates=with_estimates)
    OURS.update(ours, rule, DRAW, torch.tensor(True, device=DEVICE))
    THEIRS.update(theirs, rule, DRAW, torch.tensor(True))
    assert launches == [cuda.cuda_device.update]
    assert_moved_alike(ours, theirs, before, hessian_stays=rule.fixed_hessian)


@pytest.mark.parametrize("beta1", [0.0, 0.9, 0.999999])
@pytest.mark.parametrize("step", [1.0, 2.0, 1e6])
def test_debias_is_exact_from_the_first_step(beta1, step):
    """θ moves from 0 by exactly g/(1-β₁ᵗ): no decay, h + δ = 1."""
    move = moves([(7,)], DEVICE)[0]
    for tensor, value in ((move.factor.parameter, 0.0), (move.factor.hess, 1.0), (move.step, step)):
        tensor.fill_(value)
    rule = Rule(**{**vars(RULE), "lr": 1.0, "beta1": beta1, "weight_decay": 0.0, "fixed_hessian": True})
    OURS.update([move], rule, DRAW, torch.tensor(True, device=DEVICE))
    expected = -move.momentum.double() / (1 - beta1**step)
    assert torch.allclose(move.factor.parameter.double(), expected, rtol=5e-7)


def test_given_and_own_estimates_go_together():
    ours, theirs, before = moves(SHAPES[3:6], DEVICE), moves(SHAPES[3:6]), moves(SHAPES[3:6])
    for made in (ours, theirs):
        given = torch.linspace(0, 3, made[1].grad.numel(), device=made[1].grad.device)
        made[1] = type(made[1])(made[1].factor, made[1].momentum, made[1].step, made[1].grad, given)
    OURS.update(ours, RULE, DRAW, torch.tensor(True, device=DEVICE))
    THEIRS.update(theirs, RULE, DRAW, torch.tensor(True))
    assert_moved_alike(ours, theirs, before, hessian_stays=False)


def test_an_unusable_step_changes_nothing():
    ours = moves(SHAPES, DEVICE)
    ours[-1].grad.fill_(torch.nan)
    OURS.update(ours, RULE, DRAW, torch.tensor(False, device=DEVICE))
    assert_unchanged(ours, moves(SHAPES, DEVICE))


def test_price_is_that_of_the_cpu():
    for ours, theirs in zip(moves(SHAPES[-3:], DEVICE), moves(SHAPES[-3:]), strict=True):
        f = OURS.price(ours.factor, DRAW, ours.grad)
        assert_close([f], [THEIRS.price(theirs.factor, DRAW, theirs.grad)])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, LARGEST, -1.1 * LARGEST])
def test_one_bad_element_anywhere_makes_the_step_unusable(bad, launches):
    """Also where it stands at an odd address, in the second tensor."""
    shapes = [(), (1025,), (2048,)]
    grads = [torch.zeros(shape, device=DEVICE) for shape in shapes] + [torch.zeros(2050, device=DEVICE)[1:-1]]
    for grad in grads:
        flat = grad.view(-1)
        for place in {0, len(flat) - 1}:
            flat[place] = bad
            flag = OURS.usable(grads, LARGEST)
            assert flag.dtype == torch.bool
            assert not flag
            flat[place] = 0.99 * LARGEST
    launches.clear()
    assert OURS.usable(grads, LARGEST)
    assert launches == [cuda.cuda_device.usable]


def test_four_steps_of_ivon_are_those_of_the_cpu(monkeypatch):
    """Two groups, several samples, a frozen weight, a bad gradient, schedules: through new gradients at each step."""
    ends = []
    for device, chosen in ((DEVICE, OURS), ("cpu", THEIRS)):
        monkeypatch.setattr(ivon, "kernels_for", lambda _, chosen=chosen: chosen)
        generator = torch.Generator().manual_seed(3)
        weights = [
            torch.nn.Parameter(torch.randn(shape, generator=generator).to(device))
            for shape in [(40, 30), (30,), (30, 5)]
        ]
        weights[1].requires_grad_(False)
        inputs, targets = (torch.randn(64, width, generator=generator).to(device) for width in (40, 5))
        groups = [{"params": weights[:2]}, {"params": weights[2:], "ess": 500, "hess_init": 0.5, "beta1": 0.8}]
        optimizer = IVON(groups, lr=0.1, ess=1000, beta2=0.99, mc_samples=2, antithetic=True, seed=4)
        for step in range(4):
            optimizer.param_groups[0].update(lr=0.1 / (1 + step), ess=1000 + step)
            for _ in range(2):
                optimizer.zero_grad()
                with optimizer.sampled_params(train=True):
                    hidden = torch.tanh(inputs @ weights[0] + weights[1])
                    loss = (hidden @ weights[2] - targets).square().mean()
                    (loss * (torch.nan if step == 2 else 1)).backward()
            optimizer.step()
        assert optimizer.num_skipped_steps == 1
        assert optimizer.state_dict()["ivon"]["noise"] == "philox"
        ends.append([w.detach().cpu() for w in weights] + [optimizer.state[weights[0]]["hess"].cpu()])
    for a, b in zip(*ends, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


@pytest.mark.skipif(IS_INTERPRETED, reason="the interpreter serves no GPU")
def test_they_serve_large_dense_float32_models_on_one_gpu():
    large = torch.zeros(kernels.MIN_FUSED_WEIGHTS, device=DEVICE)
    assert isinstance(kernels_for([large]), cuda.CUDAKernels)
    for others in ([large[1:]], [large.half()], [large, torch.zeros(3)]):
        assert isinstance(kernels_for(others), EagerKernels)


@pytest.mark.skipif(IS_INTERPRETED, reason="the interpreter has nothing to wait for")
def test_nothing_waits_for_the_gpu():
    """The tables' first copies included: only compiling and the counters' array may wait, and are done before."""
    for attempt in range(2):
        made = moves(SHAPES, DEVICE)
        means = [torch.empty_like(move.momentum) for move in made]
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error" if attempt else mode)
        try:
            OURS.perturb([move.factor for move in made], means, Draw(DRAW.key))
            OURS.update(made, RULE, DRAW, OURS.usable([move.grad for move in made], LARGEST))
        finally:
            torch.cuda.set_sync_debug_mode(mode)
