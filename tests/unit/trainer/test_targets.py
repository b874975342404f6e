"""Targets against their formulas, each written out as a loop over numbers; their gradients; what they learn."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError

from trainer.ranks import Ranks
from trainer.target_spec import ACLSTarget, EntropyTarget, HardTarget, OnlineTarget, SmoothedTarget, TargetSpec
from trainer.targets import OnlineLabelSmoothing, acls_loss, build_target, entropy_rates

LOGITS_BC = 8 * torch.randn(20, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS_B = torch.arange(20) % 7
VALID_B = torch.arange(20) % 6 != 5
ACLS = ACLSTarget(lambda1=0.3, lambda2=0.07, margin=4.0)
SPECS = [HardTarget(), SmoothedTarget(rate=0.3), OnlineTarget(hard_weight=0.3), ACLS, EntropyTarget()]


def kind(spec):
    return spec.kind


def log_softmax(row):
    """In plain numbers."""
    largest = max(row)
    log_sum = largest + math.log(sum(math.exp(z - largest) for z in row))
    return [z - log_sum for z in row]


def entropy_rate(row):
    entropy = -sum(math.exp(log_p) * log_p for log_p in log_softmax(row))
    return 1 - entropy / math.log(len(row))


def smoothed_label(label, num_classes, rate):
    return [(1 - rate) * (k == label) + rate / num_classes for k in range(num_classes)]


def soft_label(spec, row, label):
    """y' of a target that is nothing but a soft label; that of `online` in its first epoch."""
    match spec:
        case HardTarget() | ACLSTarget():
            rate = 0.0
        case SmoothedTarget():
            rate = spec.rate
        case OnlineTarget():
            rate = (1 - spec.hard_weight) * spec.initial_rate
        case EntropyTarget():
            rate = entropy_rate(row)
    return smoothed_label(label, len(row), rate)


def penalty(row, lambda1, lambda2, margin):
    """ACLS's, from the condition on each class as the paper has it."""
    predicted = row.index(max(row))
    total = 0.0
    for k, z in enumerate(row):
        if k == predicted:
            total += lambda1 * max(0.0, z - margin) ** 2
        else:
            total += lambda2 * max(0.0, max(row) - z - margin) ** 2 / (len(row) - 1)
    return total


@pytest.mark.parametrize("spec", SPECS, ids=kind)
def test_loss_is_the_formula(spec):
    loss_B = build_target(spec, 7)(LOGITS_BC, LABELS_B)
    for row, label, loss in zip(LOGITS_BC.tolist(), LABELS_B.tolist(), loss_B.tolist(), strict=True):
        expected = -sum(y * log_p for y, log_p in zip(soft_label(spec, row, label), log_softmax(row), strict=True))
        if isinstance(spec, ACLSTarget):
            expected += penalty(row, spec.lambda1, spec.lambda2, spec.margin)
        assert loss == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("spec", [spec for spec in SPECS if not isinstance(spec, ACLSTarget)], ids=kind)
def test_gradient_is_prediction_minus_soft_label(spec):
    """So nothing flows through entropy's rate, nor through the soft labels of the epoch before."""
    logits_BC = LOGITS_BC.clone().requires_grad_()
    build_target(spec, 7)(logits_BC, LABELS_B).sum().backward()
    labels_BC = [soft_label(spec, row, y) for row, y in zip(LOGITS_BC.tolist(), LABELS_B.tolist(), strict=True)]
    expected_BC = LOGITS_BC.softmax(1) - torch.tensor(labels_BC, dtype=torch.float64)
    torch.testing.assert_close(logits_BC.grad, expected_BC, rtol=1e-10, atol=1e-12)


def test_acls_lowers_the_largest_logit_and_raises_the_far_ones():
    """The largest stands still in the distances: its gradient comes from the first penalty alone."""
    z = torch.tensor([[12.0, 1.0, 5.0, -3.0]], dtype=torch.float64, requires_grad=True)
    label = torch.tensor([2])
    (acls_loss(z, label, lambda1=0.3, lambda2=0.07, margin=8.0) - F.cross_entropy(z, label)).sum().backward()
    expected = [[2 * 0.3 * 4, -2 * 0.07 / 3 * 3, 0, -2 * 0.07 / 3 * 7]]
    torch.testing.assert_close(z.grad, torch.tensor(expected, dtype=torch.float64))


def test_acls_leaves_small_logits_alone():
    small_BC = LOGITS_BC.clamp(-5, 4.9)
    loss_B = build_target(ACLSTarget(lambda1=9.0, lambda2=9.0, margin=10.0), 7)(small_BC, LABELS_B)
    assert torch.equal(loss_B, build_target(HardTarget(), 7)(small_BC, LABELS_B))


def test_defaults_of_acls_are_the_authors():
    """CE + 0.1·[mean relu(z_max-10)² + 0.1·mean_{k≠max} relu(sg(z_max)-z_k-10)²]."""
    loss_B = build_target(ACLSTarget(), 7)(LOGITS_BC, LABELS_B) - F.cross_entropy(LOGITS_BC, LABELS_B, reduction="none")
    expected = [0.1 * penalty(row, 1.0, 0.1, 10.0) for row in LOGITS_BC.tolist()]
    assert max(expected) > 0
    np.testing.assert_allclose(loss_B.numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.9])
def test_smoothed_target_is_torchs(rate):
    loss_B = build_target(SmoothedTarget(rate=rate), 7)(LOGITS_BC, LABELS_B)
    torch.testing.assert_close(loss_B, F.cross_entropy(LOGITS_BC, LABELS_B, reduction="none", label_smoothing=rate))


def test_smoothing_goes_from_the_hard_label_to_none():
    hard_B = build_target(HardTarget(), 7)(LOGITS_BC, LABELS_B)
    assert torch.equal(build_target(SmoothedTarget(rate=0.0), 7)(LOGITS_BC, LABELS_B), hard_B)
    nearly_one = build_target(SmoothedTarget(rate=1 - 1e-15), 7)
    torch.testing.assert_close(nearly_one(LOGITS_BC, LABELS_B), nearly_one(LOGITS_BC, (LABELS_B + 1) % 7))


def test_entropys_rate_goes_from_uniform_to_certain():
    rows_BC = torch.tensor([[2.0, 2.0, 2.0], [500.0, 0.0, 0.0], [0.0, 0.0, -1e30], [0.1, 0.0, 0.0]])
    uniform, certain, two_of_three, nearly = entropy_rates(rows_BC).tolist()
    assert uniform == pytest.approx(0.0, abs=1e-6)
    assert certain == 1.0
    assert two_of_three == pytest.approx(1 - math.log(2) / math.log(3), rel=1e-6)
    assert 0 < nearly < 0.01
    labels_B = torch.arange(3)
    uniform_BC = torch.full((3, 3), 0.5)
    hard_B = build_target(HardTarget(), 3)(uniform_BC, labels_B)
    torch.testing.assert_close(build_target(EntropyTarget(), 3)(uniform_BC, labels_B), hard_B)


def test_online_target_begins_between_hard_and_smoothed():
    def loss(spec):
        return build_target(spec, 7)(LOGITS_BC, LABELS_B)

    torch.testing.assert_close(loss(OnlineTarget(hard_weight=1.0)), loss(HardTarget()))
    torch.testing.assert_close(loss(OnlineTarget(hard_weight=0.0, initial_rate=0.4)), loss(SmoothedTarget(rate=0.4)))
    torch.testing.assert_close(loss(OnlineTarget()), loss(SmoothedTarget(rate=0.05)))


def online(spec=None, num_classes=7):
    target = build_target(spec or OnlineTarget(), num_classes)
    assert isinstance(target, OnlineLabelSmoothing)
    return target


def observed(spec=None):
    """Half an epoch: some predictions agree with their label, some don't, some are padding; class 6 is never right."""
    target = online(spec)
    logits_BC = LOGITS_BC.clone()
    logits_BC[::2] += 30 * F.one_hot(LABELS_B[::2], 7)
    logits_BC[:, 6] = -40.0
    target.observe(logits_BC, LABELS_B, VALID_B)
    return target, logits_BC


def test_next_soft_label_is_the_mean_prediction_of_those_predicted_right():
    target, logits_BC = observed()
    initial_CC = target.soft_CC.clone()
    target.finish_epoch()
    num_right = 0
    for y in range(7):
        right = [
            np.exp(log_softmax(row))
            for row, label, valid in zip(logits_BC.tolist(), LABELS_B.tolist(), VALID_B.tolist(), strict=True)
            if valid and label == y and row.index(max(row)) == y
        ]
        num_right += len(right)
        expected = np.mean(right, axis=0) if right else initial_CC[y].numpy()
        np.testing.assert_allclose(target.soft_CC[y].numpy(), expected, rtol=1e-12)
    assert 5 < num_right < int(VALID_B.sum())
    assert torch.equal(target.soft_CC[6], initial_CC[6])


def test_online_loss_takes_the_soft_label_of_the_given_class():
    target, _ = observed(OnlineTarget(hard_weight=0.25))
    target.finish_epoch()
    loss_B = target(LOGITS_BC, LABELS_B)
    for row, y, loss in zip(LOGITS_BC.tolist(), LABELS_B.tolist(), loss_B.tolist(), strict=True):
        log_p = log_softmax(row)
        soft = -sum(s * value for s, value in zip(target.soft_CC[y].tolist(), log_p, strict=True))
        assert loss == pytest.approx(-0.25 * log_p[y] + 0.75 * soft, rel=1e-12)


def test_soft_labels_stay_for_the_whole_epoch_and_forget_it_in_the_next():
    target, logits_BC = observed()
    fresh = online()
    assert torch.equal(target(LOGITS_BC, LABELS_B), fresh(LOGITS_BC, LABELS_B))
    target.finish_epoch()
    after_one = target.soft_CC.clone()
    assert not torch.equal(after_one, fresh.soft_CC)
    target.observe(logits_BC[:1], LABELS_B[:1], VALID_B[:1])
    target.finish_epoch()
    assert torch.equal(target.soft_CC[1:], after_one[1:])
    torch.testing.assert_close(target.soft_CC[0], logits_BC[0].softmax(0))


def test_predictions_that_are_not_finite_are_left_out():
    """A step that the optimizer skips must not poison the soft labels of its class."""
    target, logits_BC = observed()
    twin, _ = observed()
    broken_BC = logits_BC.clone()
    for column, value in enumerate((float("nan"), float("inf"))):
        broken_BC[:, column] = value
        target.observe(broken_BC, LABELS_B, VALID_B)
    target.finish_epoch()
    twin.finish_epoch()
    assert torch.equal(target.soft_CC, twin.soft_CC)


def test_state_in_the_midst_of_an_epoch_goes_on_bit_for_bit():
    through, logits_BC = observed()
    first, second, third = (
        (logits_BC[rows], LABELS_B[rows], VALID_B[rows]) for rows in (slice(9), slice(9, 15), slice(15, 20))
    )
    through.finish_epoch()
    through.observe(*first)
    saved = through.state_dict()
    copy = {name: value.clone() for name, value in saved.items()}
    again = online()
    again.load_state_dict(saved)
    assert torch.equal(again(LOGITS_BC, LABELS_B), through(LOGITS_BC, LABELS_B))
    for target in (through, again):
        target.observe(*second)
        target.finish_epoch()
        target.observe(*third)
    assert all(torch.equal(saved[name], copy[name]) for name in copy)
    for name, value in through.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


@pytest.mark.parametrize("spec", [spec for spec in SPECS if not isinstance(spec, OnlineTarget)], ids=kind)
def test_other_targets_learn_nothing(spec):
    target = build_target(spec, 7)
    before_B = target(LOGITS_BC, LABELS_B)
    target.observe(LOGITS_BC, LABELS_B, VALID_B)
    target.finish_epoch()
    assert torch.equal(target(LOGITS_BC, LABELS_B), before_B)
    assert target.state_dict() == {}
    target.load_state_dict({})


def test_state_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"target\.kind is 'online' now"):
        online().load_state_dict(build_target(HardTarget(), 7).state_dict())
    with pytest.raises(ValueError, match=r"target\.kind was 'online' when this run began"):
        build_target(HardTarget(), 7).load_state_dict(online().state_dict())


@pytest.mark.parametrize("spec", SPECS, ids=kind)
def test_losses_of_bf16_logits_are_float32(spec):
    target = build_target(spec, 7)
    target.observe(LOGITS_BC.bfloat16(), LABELS_B, VALID_B)
    target.finish_epoch()
    loss_B = target(LOGITS_BC.bfloat16(), LABELS_B)
    assert loss_B.dtype == torch.float32
    assert torch.equal(loss_B, target(LOGITS_BC.bfloat16().float(), LABELS_B))


@pytest.mark.parametrize("spec", SPECS, ids=kind)
def test_nothing_waits_for_the_device(spec):
    """Tensors without content have no number that could be waited for."""
    logits_BC, labels_B = LOGITS_BC.to("meta"), LABELS_B.to("meta")
    target = build_target(spec, 7, Ranks(rank=0, world_size=1, device=torch.device("meta")))
    assert target(logits_BC, labels_B).shape == (20,)
    target.observe(logits_BC, labels_B, VALID_B.to("meta"))
    target.finish_epoch()
    with pytest.raises(RuntimeError, match="meta"):
        logits_BC.sum().item()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"kind": "online", "hard_weight": 1.1}, "hard_weight"),
        ({"kind": "online", "initial_rate": 1}, "initial_rate"),
        ({"kind": "online", "rate": 0.1}, "rate"),
        ({"kind": "acls", "margin": -1}, "margin"),
        ({"kind": "acls", "lambda1": -0.1}, "lambda1"),
        ({"kind": "acls", "lambda2": float("nan")}, "lambda2"),
        ({"kind": "entropy", "rate": 0.1}, "rate"),
        ({"kind": "soft"}, "'hard', 'smoothed', 'online', 'acls', 'entropy'"),
    ],
)
def test_a_bad_field_is_refused_by_name(spec, said):
    with pytest.raises(ValidationError, match=said):
        TypeAdapter(TargetSpec).validate_python(spec)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="num_classes 1"):
        build_target(HardTarget(), 1)
