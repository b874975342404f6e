"""IVON on several ranks over gloo: mean, momentum and Hessian are equal on all, and those that plain formulas give."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed.ivon_cases import CASES, Case, batches, build_net, loss_of, reference
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.slow

Results = list[dict[str, Any]]
"""What each rank ended with, by case."""


@pytest.fixture(scope="module", params=[2, 3], ids=["two ranks", "three ranks"])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """All cases trained, in one group of processes: importing torch takes most of the time."""
    return run_ranks("ivon_one_rank.py", request.param, tmp_path_factory.mktemp("ranks"))


def of_all_ranks(ranks: Results, case: str) -> list[Tensor]:
    """A case's tensors, the same bits on all ranks."""
    first, *others = (rank[case] for rank in ranks)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    return first


def differs(actual: list[Tensor], expected: list[Tensor]) -> bool:
    return any(not torch.allclose(a, b, rtol=0.01, atol=1e-3) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_ranks_do_what_the_formulas_say(name: str, ranks: Results) -> None:
    case = CASES[name]
    expected = reference(case, len(ranks))
    for actual, value in zip(of_all_ranks(ranks, name), expected, strict=True):
        torch.testing.assert_close(actual, value, rtol=case.tolerance, atol=case.tolerance / 1000)


def test_the_formulas_tell_the_cases_apart(ranks: Results) -> None:
    one, shared = (reference(CASES[name], len(ranks)) for name in ("one sample", "shared"))
    assert differs(one, shared)
    assert differs(one, reference(CASES["one sample"], 5 - len(ranks)))
    assert differs(one, reference(CASES["gradsq"], len(ranks)))


def test_without_the_hook_the_hessian_is_wrong(ranks: Results) -> None:
    expected = reference(Case(), len(ranks))
    assert differs(of_all_ranks(ranks, "not registered")[2::3], expected[2::3])


def test_another_seed_on_each_rank_parts_them(ranks: Results) -> None:
    first, second, *_ = (rank["another seed on each rank"] for rank in ranks)
    assert differs(first[2::3], second[2::3])


@pytest.mark.parametrize("name", ["resumed", "resumed, bare"])
def test_resuming_is_exact(name: str, ranks: Results) -> None:
    for rank in ranks:
        resumed, through = rank[name]
        assert all(torch.equal(a, b) for a, b in zip(resumed, through, strict=True))


def test_outside_a_sample_ddp_averages_as_ever(ranks: Results) -> None:
    case, world_size = Case("small buckets", mc_samples=2), len(ranks)
    net, num_parameters = build_net(case), 4
    # (parameters, gradients) three times, then what the steps between them led to
    found = of_all_ranks(ranks, "plain backward")
    for begin in range(0, 6 * num_parameters, 2 * num_parameters):
        means = found[begin : begin + num_parameters]
        gradients = found[begin + num_parameters : begin + 2 * num_parameters]
        with torch.no_grad():
            for parameter, mean in zip(net.parameters(), means, strict=True):
                parameter.copy_(mean)
        images_BCHW, labels_B = next(batches())
        loss = loss_of(net(images_BCHW, 0), labels_B, 1)
        for actual, expected in zip(gradients, torch.autograd.grad(loss, net.parameters()), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    for actual, expected in zip(found[6 * num_parameters :], reference(case, world_size), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def test_fused_kernels_agree_under_ddp_and_bare(ranks: Results) -> None:
    for rank in ranks:
        for hooked, bare, first in zip(*rank["compiled"], ranks[0]["compiled"][0], strict=True):
            assert torch.equal(hooked, first)
            torch.testing.assert_close(hooked, bare, rtol=1e-5, atol=1e-7)


def test_a_second_averaged_backward_in_a_sample_is_refused(ranks: Results) -> None:
    assert all("no_sync()" in rank["second backward"] for rank in ranks)
