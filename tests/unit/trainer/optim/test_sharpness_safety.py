"""What SAM and its relatives restore, leave alone and skip."""

import math

import pytest
import torch
from torch import nn

from tests.sharpness_steps import (
    IMAGES_BCHW,
    LABELS_B,
    METHODS,
    NUM_PASSES,
    WEIGHTS_B,
    assert_same,
    learner_for,
    small_net,
    statistics_of,
    step,
    tensors_of,
    weights_of,
)
from trainer.optim.bsam import BSAM
from trainer.optim.looksam import LookSAM
from trainer.optim.msam import MSAM
from trainer.optim.sam import ASAM, SAM, sam_directions
from trainer.steps import step_for


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
def test_state_follows_weights_that_move_to_another_memory_format(method):
    learner, plain = learner_for(method), learner_for(method)
    for num_steps in range(5):
        if num_steps == 2:
            learner.model.to(memory_format=torch.channels_last)
        step(method, learner)
        step(method, plain)
    weight = learner.model[0].weight
    assert not weight.is_contiguous()
    if method.kind == "bsam":  # whose noise fills the memory in its own order
        assert learner.optimizer.state[weight]["precision"].stride() == weight.stride()
    else:
        torch.testing.assert_close(weights_of(learner.model), weights_of(plain.model), rtol=1e-9, atol=1e-11)


def test_a_first_prediction_of_bsam_may_be_in_inference_mode():
    learner, twin = learner_for(METHODS["bsam"]), learner_for(METHODS["bsam"])
    with torch.inference_mode(), learner.optimizer.sampled_params():
        pass
    step(METHODS["bsam"], learner)
    step(METHODS["bsam"], twin)
    assert_same(tensors_of(learner), tensors_of(twin))


def test_perturbed_weights_are_seen_through_an_autocast_around_both_passes():
    model = nn.Linear(4, 3)
    optimizer = SAM(model.parameters(), lr=0.1, rho=0.5)
    inputs = torch.randn(5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first = model(inputs)
        first.sum().backward()
        with optimizer.perturbed():
            assert not torch.equal(model(inputs), first)
        assert torch.equal(model(inputs), first)


def test_bsam_says_so_where_it_goes_on_with_another_generator():
    optimizer = learner_for(METHODS["bsam"]).optimizer
    saved = optimizer.state_dict()
    saved["bsam"]["noise"] = "dice"
    with pytest.warns(UserWarning, match="drew its noise from 'dice'"):
        optimizer.load_state_dict(saved)


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


@pytest.mark.parametrize("kind", [SAM, ASAM, LookSAM, MSAM])
def test_weights_with_gaps_in_their_memory_are_refused(kind):
    kind([nn.Parameter(torch.ones(4, 2).t())], lr=0.1)  # no gaps, only another order
    with pytest.raises(ValueError, match=r"strides \(4, 1\): its elements must fill one stretch of memory"):
        kind([nn.Parameter(torch.ones(4, 4)[:, :2])], lr=0.1)
