"""SAM and its relatives as a training step takes them: what they compute, restore, leave alone and skip."""

import math
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import vector_to_parameters

from tests import sharpness_by_hand as by_hand
from trainer.label_noise.estimators import posterior_of
from trainer.method_spec import ASAMSpec, BSAMSpec, LookSAMSpec, MSAMSpec, SAMSpec
from trainer.optim import build_optimizer
from trainer.optim.bsam import BSAM
from trainer.optim.looksam import LookSAM
from trainer.optim.msam import MSAM
from trainer.optim.noise import DrawKey, Stream
from trainer.optim.sam import ASAM, SAM, sam_directions
from trainer.steps import Learner, step_for
from trainer.target_spec import HardTarget
from trainer.targets import build_target

IMAGES_BCHW = torch.randn(12, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS_B = torch.arange(12) % 5
WEIGHTS_B = torch.full((12,), 1 / 12, dtype=torch.float64)

SAM_ = SAMSpec(lr=0.2, rho=0.3, weight_decay=0.01)
METHODS = {
    "sam": SAM_,
    "sam, nesterov": SAM_.model_copy(update={"nesterov": True}),
    "sam, rho 0": SAM_.model_copy(update={"rho": 0.0}),
    "asam": ASAMSpec(lr=0.2, rho=0.5, weight_decay=0.01),
    "looksam": LookSAMSpec(lr=0.2, rho=0.3, k=3, alpha=0.4, weight_decay=0.01),
    "looksam, always": LookSAMSpec(lr=0.2, rho=0.3, k=1),
    "msam": MSAMSpec(lr=0.2, rho=0.3, weight_decay=0.01),
    "bsam": BSAMSpec(lr=0.2, ess=50, rho=0.2, beta2=0.9, damping=0.05, precision_init=0.7, weight_decay=0.01),
}
NUM_PASSES = {"sam": 2, "asam": 2, "looksam": 2, "msam": 1, "bsam": 2}
"""Of a first step."""


def small_net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 5)]
    return nn.Sequential(*layers).double()


def learner_for(method, model=None, autocast=nullcontext, more=()):
    model = model or small_net()
    holder = nn.ParameterList([*model.parameters(), *more]) if more else model
    optimizer = build_optimizer(method, holder, num_examples=50, seed=3)
    return Learner(model, optimizer, build_target(HardTarget(), 5), autocast)


def step(method, learner):
    return step_for(method)(learner, IMAGES_BCHW.to(learner.model[0].weight.dtype), LABELS_B, WEIGHTS_B)


def gradient_at(weights):
    """Of the loss on the whole batch, by a network of its own."""
    twin = small_net()
    vector_to_parameters(weights, twin.parameters())
    loss = F.cross_entropy(twin(IMAGES_BCHW), LABELS_B)
    return one_vector(torch.autograd.grad(loss, list(twin.parameters())))


def one_vector(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def weights_of(model):
    return one_vector(model.parameters()).detach().clone()


def tensors_of(learner):
    states = [t for state in learner.optimizer.state_dict()["state"].values() for t in state.values()]
    return [t.detach().clone() for t in (*learner.model.parameters(), *states)]


def statistics_of(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def meddle(learner, num_pass, change):
    """Let `change` touch the logits of the pass with this number, counted from 1."""
    count = 0

    def hook(_module, _inputs, logits_BC):
        nonlocal count
        count += 1
        return change(logits_BC) if count == num_pass else None

    return learner.model.register_forward_hook(hook)


def pass_of_each_method():
    return [
        pytest.param(method, num_pass, id=f"{name}, pass {num_pass}")
        for name, method in METHODS.items()
        for num_pass in range(1, NUM_PASSES[method.kind] + 1)
    ]


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


# ----------------------------------------------------------------------------------------------------- what is restored


@pytest.mark.parametrize(("method", "num_pass"), pass_of_each_method())
def test_an_exception_leaves_the_weights_and_no_trace_in_the_next_step(method, num_pass):
    learner, twin = learner_for(method), learner_for(method)
    for _ in range(method.k if method.kind == "looksam" else 1):  # up to a step that has all passes
        step(method, learner)
        step(method, twin)
    before = weights_of(learner.model)
    moved = []

    def fail(_logits_BC):
        moved.append(not torch.equal(weights_of(learner.model), before))
        raise ZeroDivisionError

    hook = meddle(learner, num_pass, fail)
    with pytest.raises(ZeroDivisionError):
        step(method, learner)
    hook.remove()
    is_at_the_weights = method.rho == 0 or (num_pass == 1 and method.kind not in {"msam", "bsam"})
    assert moved == [not is_at_the_weights]
    assert torch.equal(weights_of(learner.model), before)
    assert all(m.track_running_stats for m in learner.model.modules() if isinstance(m, nn.BatchNorm2d))
    step(method, learner)
    step(method, twin)
    assert_same(tensors_of(learner), tensors_of(twin))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_storage_and_memory_format_stay(method):
    model = small_net().to(memory_format=torch.channels_last)
    learner, plain = learner_for(method, model), learner_for(method)
    pointers = [p.data_ptr() for p in model.parameters()]
    for _ in range(4):
        step(method, learner)
        step(method, plain)
    assert [p.data_ptr() for p in model.parameters()] == pointers
    weight = model[0].weight
    for tensor in (weight, *learner.optimizer.state[weight].values()):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()
    if method.kind != "bsam":  # whose noise fills the memory in its own order
        torch.testing.assert_close(weights_of(model), weights_of(plain.model), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_state_loads_into_another_memory_format(method):
    learner = learner_for(method)
    for _ in range(2):
        step(method, learner)
    model = small_net().to(memory_format=torch.channels_last)
    model.load_state_dict(learner.model.state_dict())
    other = learner_for(method, model)
    other.optimizer.load_state_dict(learner.optimizer.state_dict())
    for ours, theirs in zip(
        other.optimizer.state[model[0].weight].values(),
        learner.optimizer.state[learner.model[0].weight].values(),
        strict=True,
    ):
        assert ours.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_state_of_another_optimizer_is_refused(method):
    learner = learner_for(method)
    with pytest.raises(ValueError, match=repr(method.kind)):
        learner.optimizer.load_state_dict(torch.optim.SGD(learner.model.parameters()).state_dict())


# ------------------------------------------------------------------------------------------------- what it leaves alone


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_frozen_parameters_and_those_without_gradient_do_not_move_and_change_no_norm(method):
    unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
    frozen = nn.Parameter(torch.ones(3, dtype=torch.float64), requires_grad=False)
    frozen.grad = torch.ones(3, dtype=torch.float64)
    learner, plain = learner_for(method, more=[unused, frozen]), learner_for(method)
    for _ in range(4):
        step(method, learner)
        step(method, plain)
    assert torch.equal(weights_of(learner.model), weights_of(plain.model))
    assert torch.equal(unused, torch.ones(3, dtype=torch.float64))
    assert torch.equal(frozen, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("kind", [SAM, ASAM, MSAM])
def test_a_gradient_left_over_in_a_frozen_parameter_counts_for_nothing(kind):
    weight, frozen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = kind([weight, frozen], lr=0.1, rho=1.0)
    for parameter in (weight, frozen):
        parameter.grad = torch.tensor([1.0, 0.0])
    optimizer.step()
    weight.grad, frozen.grad = torch.tensor([1.0, 0.0]), torch.tensor([math.nan, 7.0])
    frozen.requires_grad_(False)
    before, stays = weight.detach().clone(), frozen.detach().clone()
    with optimizer.perturbed():
        assert (weight - before).norm().item() == pytest.approx(1.0 if kind is not ASAM else before[0].item())
        assert torch.equal(frozen, stays)
        weight.grad, frozen.grad = torch.tensor([1.0, 0.0]), torch.tensor([math.nan, 7.0])
    optimizer.step()
    assert torch.equal(frozen, stays)
    assert optimizer.num_skipped_steps == 0


def test_freezing_a_parameter_changes_no_other_ones_noise():
    model, twin = small_net(), small_net()
    model[0].weight.requires_grad_(False)
    first, second = (BSAM(m.parameters(), lr=0.1, ess=50.0) for m in (model, twin))
    frozen = model[0].weight.clone()
    with first.sampled_params(), second.sampled_params():
        assert torch.equal(model[0].weight, frozen)
        assert torch.equal(model[4].weight, twin[4].weight)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_a_zero_gradient_is_a_step_like_any_other(method):
    learner = learner_for(method)
    step(method, learner)
    output = step_for(method)(learner, IMAGES_BCHW, LABELS_B, 0 * WEIGHTS_B)
    step(method, learner)
    assert output.loss.item() == 0
    assert learner.optimizer.num_skipped_steps == 0
    assert all(tensor.isfinite().all() for tensor in tensors_of(learner))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("method", "num_pass"), pass_of_each_method())
def test_a_gradient_that_is_not_finite_skips_the_step_and_poisons_nothing(method, num_pass, bad):
    learner, fresh = learner_for(method), learner_for(method)
    for _ in range(method.k if method.kind == "looksam" else 2):  # up to a step that has all passes
        step(method, learner)
    before = tensors_of(learner)
    num_batches = learner.model[1].num_batches_tracked.item()
    hook = meddle(learner, num_pass, lambda logits_BC: logits_BC * bad)
    step(method, learner)
    hook.remove()
    assert_same(tensors_of(learner), before)
    assert learner.optimizer.num_skipped_steps == 1
    assert learner.model[1].num_batches_tracked.item() == num_batches + 1
    assert all(buffer.isfinite().all() for buffer in statistics_of(learner.model).values())

    fresh.model.load_state_dict(learner.model.state_dict())
    fresh.optimizer.load_state_dict(learner.optimizer.state_dict())
    assert fresh.optimizer.num_skipped_steps == 1
    step(method, learner)
    step(method, fresh)
    assert_same(tensors_of(learner), tensors_of(fresh))
    assert not torch.equal(tensors_of(learner)[0], before[0])
    assert all(tensor.isfinite().all() for tensor in tensors_of(learner))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_the_first_step_may_be_skipped(method):
    learner, twin = learner_for(method), learner_for(method)
    hook = meddle(learner, 1, lambda logits_BC: logits_BC * math.nan)
    step(method, learner)
    hook.remove()
    assert torch.equal(weights_of(learner.model), weights_of(twin.model))
    if method.kind in {"sam", "asam", "msam"}:  # the others count steps: their next is not a first one
        step(method, learner)
        step(method, twin)
        assert_same(tensors_of(learner), tensors_of(twin))


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e200])
def test_one_bad_element_makes_all_of_the_perturbation_nan(bad):
    """Else a rank whose infinite gradient is scaled to nothing could stay unseen by the others."""
    good, spoilt = torch.ones(2, dtype=torch.float64), torch.tensor([1.0, bad], dtype=torch.float64)
    assert all(direction.isnan().all() for direction in sam_directions([good, spoilt]))


def test_bsam_skips_a_step_whose_first_gradient_alone_is_not_finite():
    weight = nn.Parameter(torch.ones(2))
    optimizer = BSAM([weight], lr=0.1, ess=50.0)
    weight.grad = torch.tensor([1.0, math.inf])
    with optimizer.perturbed():
        weight.grad = torch.ones(2)
    optimizer.step()
    assert optimizer.num_skipped_steps == 1
    assert torch.equal(weight, torch.ones(2))
    assert torch.equal(optimizer.state[weight]["precision"], torch.ones(2))


def test_a_skipped_sam_step_keeps_looksams_component():
    method = METHODS["looksam"]
    learner = learner_for(method)
    for _ in range(method.k):
        step(method, learner)
    weight = learner.model[0].weight
    component = learner.optimizer.state[weight]["component"].clone()
    assert component.abs().max() > 0
    hook = meddle(learner, 2, lambda logits_BC: logits_BC * math.nan)
    step(method, learner)
    hook.remove()
    assert torch.equal(learner.optimizer.state[weight]["component"], component)


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
