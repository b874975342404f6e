"""What a manifest says, in short. Pure."""

from __future__ import annotations

from data_pipeline.manifest import Manifest, Split
from service.data_set_schemas import DataSetSummary, SplitView


def summary_of(manifest: Manifest) -> DataSetSummary:
    """Its classes, splits, examples and digest."""
    return DataSetSummary(
        title=manifest.name,
        digest=manifest.digest,
        classes=manifest.classes,
        num_examples=sum(split.num_examples for split in manifest.splits.values()),
        num_skipped=len(manifest.skipped),
        corruption=manifest.recipe.corruption,
        splits={name: _split(split) for name, split in manifest.splits.items()},
    )


def _split(split: Split) -> SplitView:
    return SplitView(
        num_examples=split.num_examples,
        class_counts=split.class_counts,
        num_clean_labels=split.num_clean_labels,
        num_shards=len(split.shards),
        size_bytes=sum(shard.size_bytes + shard.index.size_bytes for shard in split.shards),
    )
