"""The compiled kernels do what the plain ones do, on the noise that they say they draw."""

import math
import os
import signal

import pytest
import torch
from kernel_cases import DRAW, RULE, RULES, assert_close, assert_moved_alike, assert_unchanged, factors, moves
from torch import nn

from trainer.optim import kernels
from trainer.optim.ivon import IVON
from trainer.optim.ivon_rules import LARGEST, Rule
from trainer.optim.kernels import cpu, kernels_for
from trainer.optim.kernels.cpu import CPUKernels
from trainer.optim.kernels.eager import EagerKernels
from trainer.optim.noise import PIECE

COMPILED = CPUKernels()
PLAIN = EagerKernels(COMPILED.normal)
SHAPES = [(), (1,), (1023,), (1024,), (1025,), (64, 3, 7, 7), (300_001,)]


def test_perturb_saves_the_means_and_moves_to_the_sample():
    ours, theirs = factors(SHAPES), factors(SHAPES)
    means = [torch.empty_like(f.parameter) for f in ours]
    other_means = [torch.empty_like(f.parameter) for f in theirs]
    COMPILED.perturb(ours, means, DRAW)
    PLAIN.perturb(theirs, other_means, DRAW)
    for factor, mean in zip(factors(SHAPES), means, strict=True):
        assert torch.equal(mean, factor.parameter)
    assert_close([f.parameter for f in ours], [f.parameter for f in theirs])
    assert not torch.allclose(ours[-1].parameter, means[-1], atol=1e-3)


@pytest.mark.parametrize("chosen", [COMPILED, PLAIN], ids=["compiled", "plain"])
def test_restore_undoes_perturb_bit_for_bit(chosen):
    made = factors(SHAPES)
    means = [torch.empty_like(f.parameter) for f in made]
    chosen.perturb(made, means, DRAW)
    chosen.restore(made, means)
    for factor, before in zip(made, factors(SHAPES), strict=True):
        assert torch.equal(factor.parameter, before.parameter)


def test_plain_torch_draws_in_pieces_what_it_draws_as_a_whole():
    plain = EagerKernels()
    for shape in ((3 * PIECE + 5,), (64, 64, 7, 7), (PIECE,), (7,)):
        (factor,) = factors([shape])
        before = factor.parameter.clone()
        plain.perturb([factor], [torch.empty_like(before)], DRAW)
        e = plain.normal(before, DRAW.key, factor.index)
        assert torch.allclose(factor.parameter, before + DRAW.sign * factor.standard_deviation() * e)


@pytest.mark.parametrize("options", RULES, ids=str)
@pytest.mark.parametrize("with_estimates", [False, True])
def test_update_is_that_of_the_rules(options, with_estimates):
    rule = Rule(**{**vars(RULE), **options})
    ours, theirs, before = (moves(SHAPES, with_estimates=with_estimates) for _ in range(3))
    COMPILED.update(ours, rule, DRAW, torch.tensor(True))
    PLAIN.update(theirs, rule, DRAW, torch.tensor(True))
    assert_moved_alike(ours, theirs, before, hessian_stays=rule.fixed_hessian)


def test_an_unusable_step_changes_nothing():
    ours, before = moves(SHAPES), moves(SHAPES)
    COMPILED.update(ours, RULE, DRAW, torch.tensor(False))
    assert_unchanged(ours, before)


def test_price_is_that_of_the_rules():
    for move in moves(SHAPES):
        assert_close([COMPILED.price(move.factor, DRAW, move.grad)], [PLAIN.price(move.factor, DRAW, move.grad)])


@pytest.mark.parametrize("chosen", [COMPILED, PLAIN], ids=["compiled", "plain"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, LARGEST, -1.1 * LARGEST])
def test_one_bad_element_anywhere_makes_the_step_unusable(chosen, bad):
    grads = [torch.zeros(shape) for shape in SHAPES]
    assert bool(chosen.usable(grads, LARGEST))
    for grad in grads:
        flat = grad.view(-1)
        for place in {0, len(flat) // 2, len(flat) - 1}:
            flat[place] = bad
            assert not bool(chosen.usable(grads, LARGEST))
            flat[place] = 0.99 * LARGEST
            assert bool(chosen.usable(grads, LARGEST))


def test_the_number_of_threads_changes_nothing():
    results = []
    before = torch.get_num_threads()
    try:
        for num_threads in (1, 2, 5):
            torch.set_num_threads(num_threads)
            ours = moves(SHAPES)
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


def test_a_gpu_that_triton_cannot_serve_is_left_to_plain_torch():
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("this one can")
    with pytest.warns(UserWarning, match="goes on without its compiled kernels"):
        chosen = kernels._compiled_kernels(torch.device("cuda"))
    assert isinstance(chosen, EagerKernels)


def test_a_processor_that_numba_cannot_serve_is_left_to_plain_torch(monkeypatch):
    """It can't where no folder may be written to, for one."""

    def fail(_device_type):
        raise RuntimeError("cannot cache function")

    monkeypatch.setattr(kernels, "_kernels_of", fail)
    with pytest.warns(UserWarning, match="slower: cannot cache function"):
        chosen = kernels._compiled_kernels.__wrapped__(torch.device("cpu"))
    assert isinstance(chosen, EagerKernels)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("loop", ["_perturb", "_copy"])
def test_an_interrupt_does_not_leave_weights_half_moved(loop, num_threads, monkeypatch):
    before = torch.get_num_threads()
    made = factors(SHAPES)
    weights = [nn.Parameter(factor.parameter.clone()) for factor in made]
    optimizer = IVON(weights, lr=0.1, ess=100, hess_init=0.1)
    monkeypatch.setattr(kernels, "MIN_FUSED_WEIGHTS", 1)
    whole, sent = getattr(cpu, loop), []

    def interrupted(*arguments):
        whole(*arguments)
        if not sent:
            sent.append(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    try:
        torch.set_num_threads(num_threads)
        with optimizer.sampled_params():  # from now on there are old means that could be taken for new ones
            pass
        for weight in weights:
            weight.data += 1
        monkeypatch.setattr(cpu, loop, interrupted)
        with pytest.raises(KeyboardInterrupt), optimizer.sampled_params():
            pass
    finally:
        torch.set_num_threads(before)
    for weight, factor in zip(weights, made, strict=True):
        assert torch.equal(weight, factor.parameter + 1)


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
