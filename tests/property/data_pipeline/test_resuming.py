"""A loader restored at every batch, by other ranks and threads, in batches of another size: the rest of the epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_pipeline.examples import ExampleTable, open_split
from data_pipeline.loader import Batch, Loader, LoaderState
from data_pipeline.spec import DataSpec
from tests.sample_data import build_clothing, make_clothing

TENSORS = ("images_BHWC", "given_labels_B", "clean_labels_B", "indices_B", "valid_B", "flip_B")
SPECS = st.builds(
    DataSpec,
    manifest=st.just("manifest.json"),
    image_size=st.just(8),
    num_threads=st.integers(1, 3),
    order=st.sampled_from(["global", "windowed"]),
    window_shards=st.integers(1, 4),
    class_balanced=st.booleans(),
    remainder=st.sampled_from(["pad", "drop"]),
)


@dataclass(frozen=True)
class Case:
    size: int
    seed: int
    spec: DataSpec
    world_size: int
    per_rank: int

    @property
    def batch_size(self) -> int:
        return self.world_size * self.per_rank

    def num_examples(self, table: ExampleTable) -> int:
        """An epoch's, by counting."""
        counts = np.bincount(table.given_labels)
        counts = counts[counts > 0]
        return len(counts) * int(counts.min()) if self.spec.class_balanced else len(table)

    def num_delivered(self, table: ExampleTable) -> int:
        size = self.num_examples(table)
        return size // self.batch_size * self.batch_size if self.spec.remainder == "drop" else size

    def alone(self, table: ExampleTable, batch_size: int) -> Loader:
        return Loader(table, self.spec, rank=0, world_size=1, seed=self.seed, shuffle=True, batch_size=batch_size)

    def ranks(self, table: ExampleTable, num_threads: int) -> list[Loader]:
        spec = self.spec.model_copy(update={"num_threads": num_threads})
        settings = {"world_size": self.world_size, "seed": self.seed, "shuffle": True, "batch_size": self.batch_size}
        return [Loader(table, spec, rank=rank, **settings) for rank in range(self.world_size)]


CASES = st.builds(Case, st.integers(1, 20), st.integers(0, 9), SPECS, st.sampled_from([1, 2, 3]), st.integers(1, 4))


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> ExampleTable:
    folder = tmp_path_factory.mktemp("clothing")
    return open_split(build_clothing(make_clothing(folder / "raw"), folder / "built"), "train")


def rest(loader: Loader, state: LoaderState) -> list[Batch]:
    with loader:
        loader.load_state_dict(state)
        return list(loader.epoch(state["epoch"], state["examples_delivered"]))


def rows_of(batches: list[Batch]) -> list[int]:
    return [row for batch in batches for row in batch.indices_B[batch.valid_B].tolist()]


def assert_merged(shares: list[list[Batch]], whole: list[Batch]) -> None:
    """Rank r's row i is row i * W + r of the global batch."""
    assert {len(share) for share in shares} == {len(whole)}
    for step, batch in enumerate(whole):
        assert {share[step].num_valid_global for share in shares} == {batch.num_valid_global}
        for name in TENSORS:
            merged = torch.stack([getattr(share[step], name) for share in shares], 1).flatten(0, 1)
            # Padding repeats pictures of its own rank.
            chosen = slice(None) if name in {"valid_B", "indices_B"} else batch.valid_B
            assert torch.equal(merged[chosen], getattr(batch, name)[chosen])


@settings(max_examples=30, deadline=None)
@given(CASES, st.integers(1, 3))
def test_any_number_of_ranks_goes_on_from_every_batch(train, case, num_threads):
    table = train.select(np.arange(case.size))
    assume(case.num_delivered(table))
    whole, states = [], []
    with case.alone(table, case.batch_size) as first:
        for batch in first.epoch(2):
            whole.append(batch)
            states.append(first.state_dict())
    assert rows_of(whole) == list(dict.fromkeys(rows_of(whole)))
    assert len(rows_of(whole)) == case.num_delivered(table) == sum(batch.num_valid_global for batch in whole)
    for done, state in enumerate(states, start=1):
        shares = [rest(loader, state) for loader in case.ranks(table, num_threads)]
        assert_merged(shares, whole[done:])


@settings(max_examples=30, deadline=None)
@given(CASES, st.integers(1, 5))
def test_batches_of_another_size_go_on_in_the_same_order(train, case, other_size):
    table = train.select(np.arange(case.size))
    assume(case.spec.remainder == "pad")
    with case.alone(table, 1) as loader:
        order = rows_of(list(loader.epoch(3)))
    assert len(order) == case.num_examples(table)
    with case.alone(table, case.batch_size) as first:
        for done, _ in enumerate(first.epoch(3), start=1):
            state = first.state_dict()
            assert state["examples_delivered"] == min(done * case.batch_size, len(order)) == first.examples_before(done)
            assert rows_of(rest(case.alone(table, other_size), state)) == order[state["examples_delivered"] :]
