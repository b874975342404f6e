"""Online label smoothing, whatever it is shown: soft labels are labels, and only the set of examples matters."""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.target_spec import OnlineTarget
from trainer.targets import build_target

SEEDS = st.integers(0, 2**31)
NUM_EXAMPLES = st.integers(1, 40)
NUM_CLASSES = st.integers(2, 6)


def predictions(seed, num_examples, num_classes):
    """Logits from nearly uniform to nearly certain, labels, and which of them are valid."""
    generator = torch.Generator().manual_seed(seed)
    scale_B1 = 10 ** (3 * torch.rand(num_examples, 1, generator=generator, dtype=torch.float64) - 1)
    logits_BC = scale_B1 * torch.randn(num_examples, num_classes, generator=generator, dtype=torch.float64)
    labels_B = torch.randint(num_classes, (num_examples,), generator=generator)
    return logits_BC, labels_B, torch.rand(num_examples, generator=generator) < 0.8


def learned(parts, num_classes):
    """The target after an epoch of these parts."""
    target = build_target(OnlineTarget(), num_classes)
    for part in parts:
        target.observe(*part)
    target.finish_epoch()
    return target


@settings(deadline=None)
@given(SEEDS, NUM_EXAMPLES, NUM_CLASSES)
def test_soft_labels_sum_to_one_and_a_class_never_right_keeps_its_own(seed, num_examples, num_classes):
    target = build_target(OnlineTarget(), num_classes)
    for epoch in range(3):
        before_CC = target.soft_CC.clone()
        logits_BC, labels_B, valid_B = predictions(seed + epoch, num_examples, num_classes)
        target.observe(logits_BC, labels_B, valid_B)
        target.finish_epoch()
        torch.testing.assert_close(target.soft_CC.sum(dim=1), torch.ones(num_classes, dtype=torch.float64))
        assert bool((target.soft_CC >= 0).all())
        right = set(labels_B[valid_B & (logits_BC.argmax(dim=1) == labels_B)].tolist())
        for y in range(num_classes):
            assert torch.equal(target.soft_CC[y], before_CC[y]) == (y not in right)


@settings(deadline=None)
@given(SEEDS, NUM_EXAMPLES, NUM_CLASSES, st.lists(st.integers(0, 40), max_size=4))
def test_neither_order_nor_split_matters(seed, num_examples, num_classes, cuts):
    examples = predictions(seed, num_examples, num_classes)
    whole = learned([examples], num_classes)
    order = torch.randperm(num_examples, generator=torch.Generator().manual_seed(seed))
    edges = sorted({0, num_examples, *(cut % (num_examples + 1) for cut in cuts)})
    rows = [order[start:end] for start, end in pairwise(edges)]
    parts = learned([[column[part] for column in examples] for part in rows], num_classes)
    torch.testing.assert_close(parts.soft_CC, whole.soft_CC, rtol=1e-12, atol=1e-15)


@settings(deadline=None)
@given(SEEDS, NUM_EXAMPLES, NUM_CLASSES)
def test_sums_of_ranks_add_up(seed, num_examples, num_classes):
    """What ranks observe adds up to what one observes of all: their state is the sum."""
    examples = predictions(seed, num_examples, num_classes)
    sums = []
    for rows in (slice(None), slice(0, None, 2), slice(1, None, 2)):
        target = build_target(OnlineTarget(), num_classes)
        target.observe(*(column[rows] for column in examples))
        sums.append(target.state_dict()["sums_CC"])
    torch.testing.assert_close(sums[1] + sums[2], sums[0], rtol=1e-12, atol=1e-15)


@settings(deadline=None)
@given(SEEDS, NUM_EXAMPLES, NUM_CLASSES)
def test_nothing_valid_is_nothing_observed(seed, num_examples, num_classes):
    logits_BC, labels_B, valid_B = predictions(seed, num_examples, num_classes)
    nothing = (logits_BC, labels_B, torch.zeros_like(valid_B))
    alone, with_nothing = (
        learned(parts, num_classes)
        for parts in ([(logits_BC, labels_B, valid_B)], [nothing, (logits_BC, labels_B, valid_B), nothing])
    )
    assert torch.equal(alone.soft_CC, with_nothing.soft_CC)
