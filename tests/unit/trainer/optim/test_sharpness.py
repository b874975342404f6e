"""SAM and its relatives as a training step takes them: what they compute, and what they refuse."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import vector_to_parameters

from tests import sharpness_by_hand as by_hand
from tests.sharpness_steps import (
    IMAGES_BCHW,
    LABELS_B,
    METHODS,
    NUM_PASSES,
    gradient_at,
    learner_for,
    one_vector,
    small_net,
    statistics_of,
    step,
    tensors_of,
    weights_of,
)
from trainer.label_noise.estimators import posterior_of
from trainer.optim.bsam import BSAM
from trainer.optim.looksam import LookSAM
from trainer.optim.msam import MSAM
from trainer.optim.noise import DrawKey, Stream
from trainer.optim.sam import ASAM, SAM

# --------------------------------------------------------------------------------------------------------- the formulas


@pytest.mark.parametrize("method", [m for m in METHODS.values() if m.kind != "bsam"], ids=str)
def test_steps_are_those_computed_by_hand(method):
    steps = {"sam": by_hand.sam_step, "asam": by_hand.asam_step, "looksam": by_hand.looksam_step}
    learner, take = learner_for(method), {**steps, "msam": by_hand.msam_step}[method.kind]
    state = by_hand.begin(weights_of(learner.model))
    for _ in range(7):
        step(method, learner)
        take(state, [gradient_at], method)
        torch.testing.assert_close(weights_of(learner.model), state.w, rtol=1e-9, atol=1e-11)
    velocity = one_vector([learner.optimizer.state[p]["momentum_buffer"] for p in learner.model.parameters()])
    torch.testing.assert_close(velocity, state.v, rtol=1e-9, atol=1e-11)


def test_bsam_steps_are_those_computed_by_hand():
    method = METHODS["bsam"]
    learner = learner_for(method)
    parameters = list(learner.model.parameters())
    state = by_hand.begin(weights_of(learner.model), method.precision_init)
    for number in range(4):
        draw = DrawKey(3, Stream.TRAINING, number, 0)
        posterior = learner.optimizer.posterior()
        noise = one_vector([posterior.noise(p.detach(), draw, i) for i, p in enumerate(parameters)])
        step(method, learner)
        by_hand.bsam_step(state, [gradient_at], method, noise)
        torch.testing.assert_close(weights_of(learner.model), state.w, rtol=1e-8, atol=1e-10)
    for name, expected in (("momentum", state.v), ("precision", state.more)):
        found = one_vector([learner.optimizer.state[p][name] for p in parameters])
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    sigmas = one_vector(learner.optimizer.posterior().standard_deviations())
    torch.testing.assert_close(sigmas, (50 * state.more).rsqrt(), rtol=1e-8, atol=0)


def test_bsam_draws_afresh_each_step_with_the_posteriors_width():
    weight = nn.Parameter(torch.zeros(20_000))
    optimizer = BSAM([weight], lr=0.1, ess=50.0, precision_init=0.5)
    draws = []
    for _ in range(2):
        optimizer.zero_grad()
        with optimizer.sampled_params():
            draws.append(weight.detach().clone())
            (0 * weight.sum()).backward()
        with optimizer.perturbed():
            (0 * weight.sum()).backward()
        optimizer.step()
    assert draws[0].std().item() == pytest.approx(1 / math.sqrt(50 * 0.5), rel=0.02)
    assert abs(torch.corrcoef(torch.stack(draws))[0, 1].item()) < 0.03


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_only_bsam_has_a_posterior_for_label_noise_and_prediction(method):
    posterior = posterior_of(learner_for(method).optimizer)
    if method.kind != "bsam":
        assert posterior is None
        return
    for sigma in posterior.standard_deviations():
        torch.testing.assert_close(sigma, torch.full_like(sigma, 1 / math.sqrt(50 * 0.7)))


def test_looksam_has_a_second_pass_in_each_kth_step_only():
    method = METHODS["looksam"]
    learner = learner_for(method)
    passes = []
    learner.model.register_forward_hook(lambda *_: passes.append(learner.optimizer.is_sam_step))
    for _ in range(5):
        step(method, learner)
    assert passes == [True, True, False, False, True, True, False]


def test_rho_is_that_of_the_parameters_group():
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    optimizer = SAM([{"params": [a], "rho": 2.0}, {"params": [b]}], lr=0.1, rho=1.0)
    (3 * a[0] + 4 * b[0]).backward()  # one norm over both: 5
    with optimizer.perturbed():
        torch.testing.assert_close(a.detach(), torch.tensor([2 * 3 / 5, 0.0]))
        torch.testing.assert_close(b.detach(), torch.tensor([4 / 5]))


# ----------------------------------------------------------------------------------------- statistics and step's output


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_statistics_and_output_are_those_of_the_first_pass(method):
    learner = learner_for(method)
    seen = []
    learner.model.register_forward_pre_hook(lambda module, _: seen.append(weights_of(module)))
    output = step(method, learner)
    assert len(seen) == NUM_PASSES[method.kind]
    twin = small_net()
    vector_to_parameters(seen[0], twin.parameters())
    logits_BC = twin(IMAGES_BCHW)
    assert torch.equal(output.logits_BC, logits_BC)
    assert output.loss.item() == pytest.approx(F.cross_entropy(logits_BC, LABELS_B).item())
    expected = statistics_of(twin)
    assert expected["1.num_batches_tracked"] == 1
    for name, buffer in statistics_of(learner.model).items():
        assert torch.equal(buffer, expected[name]), name


# -------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_steps_under_autocast_keep_the_weights_in_float32(method):
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    learner = learner_for(method, small_net().float(), autocast)
    losses = [step(method, learner).loss.item() for _ in range(30)]
    assert losses[-1] < losses[0] / 2
    assert all(tensor.dtype == torch.float32 for tensor in tensors_of(learner))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (SAM, {"lr": -1.0}, "lr -1.0"),
        (SAM, {"rho": -0.1}, "rho -0.1"),
        (SAM, {"momentum": 1.0}, "momentum 1.0"),
        (ASAM, {"weight_decay": -0.1}, "weight_decay -0.1"),
        (SAM, {"nesterov": True, "momentum": 0.0}, "nesterov"),
        (LookSAM, {"k": 0}, "k 0"),
        (LookSAM, {"alpha": -1.0}, "alpha -1.0"),
        (MSAM, {"momentum": 0.0}, "momentum 0"),
        (BSAM, {"ess": 0}, "ess 0"),
        (BSAM, {"ess": 1, "beta1": 1.0}, "beta1 1.0"),
        (BSAM, {"ess": 1, "damping": -1.0}, "damping -1.0"),
        (BSAM, {"ess": 1, "precision_init": 0.0}, "precision_init 0.0"),
    ],
)
def test_meaningless_hyperparameters_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(small_net().parameters(), **{"lr": 0.1, **options})


def test_step_with_a_closure_returns_its_loss():
    model = small_net()
    optimizer = SAM(model.parameters(), lr=0.1)

    def closure():
        optimizer.zero_grad()
        F.cross_entropy(model(IMAGES_BCHW), LABELS_B).backward()
        with optimizer.perturbed():
            loss = F.cross_entropy(model(IMAGES_BCHW), LABELS_B)
            loss.backward()
        return loss.item()

    losses = [optimizer.step(closure) for _ in range(20)]
    assert losses[-1] < losses[0]


def test_a_gradient_laid_out_otherwise_moves_the_right_weights():
    weight = nn.Parameter(torch.zeros(2, 3))
    optimizer = SAM([weight], lr=1.0, momentum=0.0)
    gradient = torch.arange(6.0).reshape(3, 2).t()
    weight.grad = gradient
    optimizer.step()
    assert torch.equal(weight, -gradient)
