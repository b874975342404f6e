"""SAM and its relatives under DDP over gloo: all ranks end equal, and where one process by the formulas does."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from tests import sharpness_by_hand as by_hand
from tests.distributed import sam_one_rank as worker
from trainer.method_spec import BSAMSpec
from trainer.optim.noise import DrawKey, Stream, seeded_normal

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=[2, 3], ids="{} ranks".format)
def ranks(request, tmp_path_factory):
    """What each of the ranks ended with."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen([sys.executable, worker.__file__, str(rank), str(request.param), str(folder)], env=environment)
        for rank in range(request.param)
    ]
    try:
        assert [process.wait(timeout=240) for process in processes] == [0] * request.param
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(request.param)]


def gradient_on_share(step: int, rank: int, world_size: int, weights: Tensor) -> Tensor:
    """Of the mean loss on a rank's share, which BatchNorm normalises by itself."""
    model = worker.small_net()
    vector_to_parameters(weights, model.parameters())
    images_BCHW, labels_B = worker.share(step, rank, world_size)
    loss = F.cross_entropy(model(images_BCHW), labels_B)
    return parameters_to_vector(torch.autograd.grad(loss, list(model.parameters())))


def noise_of(step: int) -> Tensor:
    draw = DrawKey(worker.SEED, Stream.TRAINING, step, 0)
    parameters = enumerate(worker.small_net().parameters())
    return parameters_to_vector([seeded_normal(p.detach(), draw, index) for index, p in parameters])


def by_formula(name: str, world_size: int) -> Tensor:
    """The weights after all steps, in one process."""
    method = worker.METHODS[name]
    initial = parameters_to_vector(worker.small_net().parameters()).detach()
    state = by_hand.begin(initial, method.precision_init if isinstance(method, BSAMSpec) else 0.0)
    for step in range(worker.NUM_STEPS):
        gradients = [partial(gradient_on_share, step, rank, world_size) for rank in range(world_size)]
        match name:
            case "sam":
                by_hand.sam_step(state, gradients, method)
            case "asam":
                by_hand.asam_step(state, gradients, method)
            case "looksam":
                by_hand.looksam_step(state, gradients, method)
            case "msam":
                by_hand.msam_step(state, gradients, method)
            case "bsam":
                by_hand.bsam_step(state, gradients, method, noise_of(step))
    return state.w


def weights_of(result) -> Tensor:
    return parameters_to_vector([result["model"][name] for name, _ in worker.small_net().named_parameters()])


@pytest.mark.slow
@pytest.mark.parametrize("name", worker.METHODS)
def test_ranks_end_where_the_formulas_do(ranks, name):
    expected = by_formula(name, len(ranks))
    torch.testing.assert_close(weights_of(ranks[0][name]["trained"]), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["trained", "skipped"])
@pytest.mark.parametrize("name", worker.METHODS)
def test_all_ranks_end_equal(ranks, name, run):
    first, *others = (result[name][run] for result in ranks)
    for other in others:
        assert torch.equal(weights_of(first), weights_of(other))
        for ours, theirs in zip(
            first["optimizer"]["state"].values(), other["optimizer"]["state"].values(), strict=True
        ):
            for value, its in zip(ours.values(), theirs.values(), strict=True):
                assert torch.equal(value, its)


@pytest.mark.slow
@pytest.mark.parametrize("name", worker.METHODS)
def test_a_rank_that_meets_nan_makes_all_skip_the_step(ranks, name):
    for result in ranks:
        skipped = result[name]["skipped"]
        assert skipped["stayed"]
        assert skipped["optimizer"][name]["num_skipped"] == 1
        assert skipped["optimizer"][name]["num_steps"] == 3
        assert all(tensor.isfinite().all() for tensor in skipped["model"].values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sam", "asam"])
def test_running_statistics_are_those_of_each_ranks_first_passes(ranks, name):
    """Of the last step's first pass: statistics move once a step, at w, by the rank's own share."""
    world_size = len(ranks)
    for rank, result in enumerate(ranks):
        found = result[name]["trained"]["model"]
        assert found["1.num_batches_tracked"] == worker.NUM_STEPS
        model = worker.small_net()
        state = by_hand.begin(parameters_to_vector(model.parameters()).detach())
        take = {"sam": by_hand.sam_step, "asam": by_hand.asam_step}[name]
        for step in range(worker.NUM_STEPS):
            vector_to_parameters(state.w, model.parameters())
            model(worker.share(step, rank, world_size)[0])
            gradients = [partial(gradient_on_share, step, r, world_size) for r in range(world_size)]
            take(state, gradients, worker.METHODS[name])
        for name_, buffer in model.named_buffers():
            torch.testing.assert_close(found[name_], buffer, rtol=1e-8, atol=1e-10)
