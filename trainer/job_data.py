"""DataSpec -> the tables and loaders of one rank: training split, evaluated splits, tracked examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from data_pipeline.examples import UNKNOWN_LABEL, ExampleTable, open_split
from data_pipeline.loader import Loader
from data_pipeline.manifest import Manifest
from data_pipeline.reading.cache import ShardCache
from trainer.ranks import Ranks
from trainer.run_schema import LabelKind, Split
from trainer.spec import JobSpec

EVALUATED_SPLITS: tuple[Split, ...] = ("val", "test")


@dataclass(frozen=True, eq=False)
class Part:
    """A table and this rank's loader of it."""

    table: ExampleTable
    loader: Loader


@dataclass(frozen=True, eq=False)
class JobData:
    """The data of a job as one rank sees it."""

    manifest: Manifest
    train: Part
    tracked: Part
    """The examples whose label noise is recorded, in the order of the training table."""
    evaluated: Mapping[Split, Part]
    """val and test, those of them that the data set has."""


@contextmanager
def open_data(spec: JobSpec, ranks: Ranks, cache: ShardCache | None = None) -> Iterator[JobData]:
    """Open what the manifest lists; ValueError if nothing is to train on or the batch does not split."""
    manifest = Manifest.load(spec.data.manifest)
    tolerant = spec.data.model_copy(update={"max_bad_fraction": 1.0})  # see trainer.quarantine: the ranks hold to it
    with ExitStack() as stack:

        def part(table: ExampleTable, *, shuffle: bool = False) -> Part:
            loader = Loader(
                table,
                tolerant,
                rank=ranks.rank,
                world_size=ranks.world_size,
                seed=spec.seed,
                shuffle=shuffle,
                batch_size=spec.data.batch_size,
                cache=cache,
                decode_device=ranks.device if spec.data.decode_on == "cuda" else None,
            )
            return Part(table, stack.enter_context(loader))

        train = open_split(manifest, "train", spec.data.corruption)
        tracked = train.select(tracked_rows(spec, len(train)))
        tables = {split: open_split(manifest, split) for split in EVALUATED_SPLITS if split in manifest.splits}
        yield JobData(
            manifest=manifest,
            train=part(train, shuffle=True),
            tracked=part(tracked),
            evaluated={split: part(table) for split, table in tables.items() if len(table)},
        )


def tracked_rows(spec: JobSpec, num_train: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Rows of the training table that are tracked: a random subset, a function of seed and size only, ascending."""
    wanted = spec.label_noise.num_examples
    if wanted == "all" or wanted >= num_train:
        return np.arange(num_train, dtype=np.int64)
    chosen = np.random.default_rng(spec.seed).choice(num_train, size=wanted, replace=False)
    return np.sort(chosen).astype(np.int64)


def label_kind(table: ExampleTable) -> LabelKind:
    """The labels a split is measured against: the clean ones where all are known, else the given ones."""
    return "clean" if bool((table.clean_labels != UNKNOWN_LABEL).all()) else "given"
