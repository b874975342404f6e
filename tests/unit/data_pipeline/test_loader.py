"""The loader over ranks, interrupted, and with damaged data."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.errors import BadImageError, QuarantineLimitError, StorageError
from data_pipeline.examples import ExampleTable, open_split
from data_pipeline.loader import Batch, Loader
from data_pipeline.manifest import Manifest
from data_pipeline.pictures.batch_decoder import CPUBatchDecoder
from data_pipeline.reading.cache import ShardCache
from data_pipeline.reading.reader import ShardReader
from data_pipeline.spec import DataSpec, num_tolerated
from data_pipeline.storage import Storage

TENSORS = ("images_BHWC", "given_labels_B", "clean_labels_B", "indices_B", "valid_B", "flip_B")


def spec(**changes) -> DataSpec:
    return DataSpec(manifest="manifest.json", **{"image_size": 24, "num_threads": 2, **changes})


def loader(table: ExampleTable, data_spec: DataSpec | None = None, **changes) -> Loader:
    settings = {"rank": 0, "world_size": 1, "seed": 5, "shuffle": True, "batch_size": 6, **changes}
    return Loader(table, data_spec or spec(), **settings)


def batches(table: ExampleTable, epoch: int = 1, **changes) -> list[Batch]:
    with loader(table, **changes) as opened:
        return list(opened.epoch(epoch))


def assert_equal(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in TENSORS)
        assert one.num_valid_global == other.num_valid_global


@pytest.fixture
def train(built_clothing) -> ExampleTable:
    return open_split(built_clothing[1], "train")


@pytest.fixture
def damaged(built_clothing, tmp_path: Path) -> ExampleTable:
    """The training split with one byte of three images changed after the build."""
    shutil.copytree(built_clothing[1].root, tmp_path / "damaged")
    table = open_split(Manifest.load(tmp_path / "damaged" / "manifest.json"), "train")
    for row in (3, 9, 17):
        path = tmp_path / "damaged" / table.shard_of(row)
        content = bytearray(path.read_bytes())
        content[table.offsets[row] + 700] ^= 0x10
        path.write_bytes(content)
    return table


def test_an_epoch_holds_each_example_once_with_its_labels(train):
    seen = [row for batch in batches(train) for row in batch.indices_B.tolist() if row >= 0]
    assert sorted(seen) == list(range(20))
    for batch in batches(train):
        rows = batch.indices_B[batch.valid_B].numpy()
        np.testing.assert_array_equal(batch.given_labels_B[batch.valid_B], train.given_labels[rows])
        np.testing.assert_array_equal(batch.clean_labels_B[batch.valid_B], train.clean_labels[rows])


def test_shapes_types_and_padding_of_the_last_batch(train):
    *full, last = batches(train)
    assert [batch.num_valid_global for batch in (*full, last)] == [6, 6, 6, 2]
    assert last.images_BHWC.shape == (6, 24, 24, 3)
    assert last.images_BHWC.dtype == torch.uint8
    assert (last.given_labels_B.dtype, last.clean_labels_B.dtype, last.indices_B.dtype) == (torch.int64,) * 3
    assert (last.valid_B.dtype, last.flip_B.dtype) == (torch.bool,) * 2
    assert last.valid_B.tolist() == [True] * 2 + [False] * 4
    assert last.indices_B[2:].tolist() == last.clean_labels_B[2:].tolist() == [-1] * 4
    for padding in range(2, 6):  # no black pictures in the batch statistics
        assert torch.equal(last.images_BHWC[padding], last.images_BHWC[padding % 2])


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_share_the_same_global_batches_with_the_same_pixels(train, world_size, shuffle):
    whole = batches(train, shuffle=shuffle)
    shares = [batches(train, rank=rank, world_size=world_size, shuffle=shuffle) for rank in range(world_size)]
    assert {len(share) for share in shares} == {len(whole)}
    for step, batch in enumerate(whole):
        assert {share[step].num_valid_global for share in shares} == {batch.num_valid_global}
        merged = {
            name: torch.stack([getattr(share[step], name) for share in shares], 1).flatten(0, 1) for name in TENSORS
        }
        assert torch.equal(merged["indices_B"], batch.indices_B)
        assert torch.equal(merged["valid_B"], batch.valid_B)
        for name in TENSORS:
            assert torch.equal(merged[name][batch.valid_B], getattr(batch, name)[batch.valid_B])


def test_epochs_and_seeds_differ_and_repeat(train):
    first = batches(train, epoch=1)
    assert_equal(first, batches(train, epoch=1))
    for other in (batches(train, epoch=2), batches(train, epoch=1, seed=6)):
        assert not torch.equal(first[0].indices_B, other[0].indices_B)


def test_threads_and_prefetching_change_nothing(train):
    assert_equal(batches(train, data_spec=spec(num_threads=1)), batches(train, data_spec=spec(num_threads=7)))


def test_evaluation_is_in_order_and_the_same_each_epoch(train):
    first = batches(train, shuffle=False)
    assert torch.cat([batch.indices_B for batch in first]).tolist() == [*range(20), -1, -1, -1, -1]
    assert not any(batch.flip_B.any() for batch in first)
    assert_equal(first, batches(train, epoch=9, shuffle=False))


def test_augmentation_none_is_the_whole_picture_in_training_too(train):
    plain = spec(augmentation="none")
    by_row = {}
    for shuffle in (False, True):
        for batch in batches(train, data_spec=plain, shuffle=shuffle):
            assert not batch.flip_B.any()
            for row, image in zip(
                batch.indices_B[batch.valid_B].tolist(), batch.images_BHWC[batch.valid_B], strict=True
            ):
                assert torch.equal(by_row.setdefault(row, image), image)


def test_about_half_of_the_training_pictures_are_flipped(digits):
    flips = torch.cat([batch.flip_B[batch.valid_B] for batch in batches(open_split(digits, "train"), batch_size=100)])
    assert abs(flips.float().mean() - 0.5) < 4 * 0.5 / 1297**0.5


def test_digits_are_enlarged_whole(digits):
    table = open_split(digits, "test")
    batch = batches(table, shuffle=False, batch_size=300, data_spec=spec(image_size=8))[0]
    assert batch.valid_B.all()
    assert batch.images_BHWC.shape == (300, 8, 8, 3)
    assert batch.images_BHWC.float().std() > 50


@pytest.mark.parametrize("world_size", [1, 2])
def test_resuming_at_every_batch_gives_the_rest_of_the_epoch(train, world_size):
    whole = batches(train, epoch=3, rank=world_size - 1, world_size=world_size)
    for stop in range(len(whole) + 1):
        with loader(train, rank=0, world_size=1) as first:
            running = first.epoch(3)
            for _ in range(stop):
                next(running)
            state = first.state_dict() if stop else {**first.state_dict(), "epoch": 3}
        assert state["examples_delivered"] == min(20, 6 * stop)  # what was prefetched does not count
        with loader(train, rank=world_size - 1, world_size=world_size) as second:
            second.load_state_dict(state)
            assert second.state_dict() == state
            assert_equal(list(second.epoch(state["epoch"], state["examples_delivered"])), whole[stop:])
            assert second.state_dict()["examples_delivered"] == 20


def test_what_was_done_before_a_restart_is_not_read_again(train, monkeypatch):
    rows_read: list[int] = []
    read_many = ShardReader.read_many

    def counted(reader: ShardReader, rows: list[int]) -> list[bytes | BadImageError]:
        rows_read.extend(rows)
        return read_many(reader, rows)

    monkeypatch.setattr(ShardReader, "read_many", counted)
    with loader(train, batch_size=4) as opened:
        rest = torch.cat([batch.indices_B for batch in opened.epoch(1, 12)])
    assert sorted(rows_read) == sorted(rest.tolist())
    assert len(rows_read) == 8


@pytest.mark.parametrize("where", [(ShardReader, "read_many"), (CPUBatchDecoder, "decode_boxes")])
def test_an_error_in_a_thread_reaches_whoever_waits_for_its_batch(train, monkeypatch, where):
    def broken(*_: object) -> None:
        raise MemoryError("in a thread")

    monkeypatch.setattr(*where, broken)
    with loader(train) as opened, pytest.raises(MemoryError, match="in a thread"):
        next(opened.epoch(1))
    assert not loader_threads()


@pytest.mark.parametrize(
    "change", [{"digest": "0" * 64}, {"labels_xxh3": "0"}, {"seed": 6}, {"order": "windowed"}, {"num_examples": 19}]
)
def test_a_state_of_other_data_or_order_is_refused(train, change):
    with loader(train) as opened:
        with pytest.raises(ValueError, match=f"{next(iter(change))} was .*, now it is"):
            opened.load_state_dict({**opened.state_dict(), **change})
        with pytest.raises(ValueError, match="start_example 21 must lie between 0 and 20"):
            opened.epoch(1, start_example=21)


@pytest.mark.parametrize("shuffle", [True, False])
def test_unreadable_examples_are_skipped_counted_and_listed(damaged, shuffle):
    with loader(damaged, spec(max_bad_fraction=0.15), shuffle=shuffle) as opened:
        for epoch in (1, 2):
            seen = list(opened.epoch(epoch))
            bad_rows = {row for batch in seen for row in batch.indices_B[~batch.valid_B].tolist() if row >= 0}
            assert bad_rows == {3, 9, 17}
        quarantine = opened.quarantine
    assert {bad.row for bad in quarantine} == {3, 9, 17}
    assert len(quarantine) == 3  # once, not once an epoch
    for bad in quarantine:
        assert bad.example_id == damaged.example_ids[bad.row]
        assert bad.shard == damaged.shards[bad.row]
        assert "differ from their checksum" in bad.reason


def test_past_the_limit_the_job_fails_with_count_limit_and_examples(damaged):
    with loader(damaged, spec(max_bad_fraction=0.1), shuffle=False) as opened:
        message = r"3 of 20 examples of 'train' are unreadable; max_bad_fraction 0\.1 tolerates 2\. The first: "
        with pytest.raises(QuarantineLimitError, match=message + damaged.example_ids[3]):
            list(opened.epoch(1))


@pytest.mark.parametrize(("fraction", "of", "number"), [(0.29, 100, 29), (0.07, 100, 7), (0.01, 99, 0), (1, 7, 7)])
def test_a_fraction_tolerates_what_it_says_in_decimals(fraction, of, number):
    assert num_tolerated(fraction, of) == number


def test_a_cut_and_a_missing_shard_are_quarantined(built_clothing, tmp_path):
    shutil.copytree(built_clothing[1].root, tmp_path / "cut")
    table = open_split(Manifest.load(tmp_path / "cut" / "manifest.json"), "train")
    (tmp_path / "cut" / "train-000000.tar").unlink()
    (tmp_path / "cut" / "train-000001.tar").write_bytes(b"")
    with loader(table, spec(max_bad_fraction=1)) as opened:
        list(opened.epoch(1))
        reasons = {bad.reason.split(" at ")[0] for bad in opened.quarantine}
    assert len(opened.quarantine) == 16
    assert reasons == {
        "shard train-000000.tar: No such file or directory",
        "shard train-000001.tar ends inside the image",
    }


def test_a_batch_of_unreadable_examples_only(damaged):
    only_bad = damaged.select([3, 9, 17])
    with loader(only_bad, spec(max_bad_fraction=1), batch_size=3) as opened:
        (batch,) = opened.epoch(1)
    assert not batch.valid_B.any()
    assert batch.num_valid_global == 3
    assert not batch.images_BHWC.any()


def test_a_picture_that_decodes_badly_is_quarantined_with_the_decoders_reason(clothing, tmp_path):
    from sample_data import build_clothing

    path = clothing.image(clothing.train[0])
    path.write_bytes(path.read_bytes()[:-400])  # header whole, picture cut: seen when decoded
    table = open_split(build_clothing(clothing, tmp_path / "out"), "train")
    with loader(table, spec(max_bad_fraction=0.05)) as opened:
        list(opened.epoch(1))
        (bad,) = opened.quarantine
    assert "damaged JPEG" in bad.reason


def loader_threads() -> list[str]:
    """All of ours but the optimizer's, whose pool lasts as long as the process that other tests of it run in."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("hush-") and not name.startswith("hush-optim")]


def test_threads_end_after_an_early_break_and_after_an_error(train, damaged):
    with loader(train) as opened:
        for _ in opened.epoch(1):
            assert loader_threads()
            break
    assert not loader_threads()
    with loader(damaged, spec(max_bad_fraction=0)) as opened, pytest.raises(QuarantineLimitError):
        list(opened.epoch(1))
    assert not loader_threads()
    opened.close()  # twice does no harm


def test_an_abandoned_epoch_does_not_disturb_the_next(train):
    with loader(train) as opened:
        next(opened.epoch(1))
        assert_equal(list(opened.epoch(2)), batches(train, epoch=2))


def test_the_state_is_that_of_the_batch_delivered_last(train):
    with loader(train) as opened:
        states = []
        epochs = {number: opened.epoch(number) for number in (1, 2)}
        for number in (1, 2, 1):
            next(epochs[number])
            states.append((opened.state_dict()["epoch"], opened.state_dict()["examples_delivered"]))
    assert states == [(1, 6), (2, 6), (1, 12)]


def test_augmentation_goes_by_example_epoch_and_seed_and_not_by_place(train):
    def pictures(table: ExampleTable, **changes: int) -> dict[str, tuple[bool, bytes]]:
        return {
            table.example_ids[int(row)]: (bool(flip), image.numpy().tobytes())
            for batch in batches(table, **changes)
            for row, flip, image in zip(batch.indices_B, batch.flip_B, batch.images_BHWC, strict=True)
            if row >= 0
        }

    here = pictures(train)
    assert pictures(train.select(range(19, 9, -1)), batch_size=3) == {
        name: here[name] for name in train.example_ids[10:]
    }
    for other in ({"epoch": 2}, {"seed": 6}):
        assert all(picture != here[name] for name, picture in pictures(train, **other).items())


def test_a_selection_loads_its_own_rows(train):
    chosen = train.select([7, 2, 11])
    (batch,) = batches(chosen, shuffle=False)
    assert batch.indices_B.tolist() == [0, 1, 2, -1, -1, -1]
    assert batch.given_labels_B[:3].tolist() == train.given_labels[[7, 2, 11]].tolist()
    assert chosen.shards.tolist() == [train.shards[row] for row in (7, 2, 11)]


def test_a_dropped_remainder_leaves_whole_batches_only(train):
    dropping = spec(remainder="drop")
    padded, dropped = batches(train), batches(train, data_spec=dropping)
    assert_equal(dropped, padded[:-1])
    assert all(batch.valid_B.all() for batch in dropped)
    assert_equal(batches(train, data_spec=dropping, shuffle=False), batches(train, shuffle=False))  # measured on all
    with pytest.raises(ValueError, match=r"remainder 'drop' leaves nothing: batch_size 21 must be at most 20"):
        loader(train, dropping, batch_size=21)


def test_a_balanced_epoch_has_as_many_of_each_class(train):
    chosen = train.select([0, 1, 2, 3, 4, 5, 6, 7])
    counts = np.bincount(chosen.given_labels, minlength=3)
    assert len(set(counts.tolist())) > 1
    for epoch in (1, 2):
        seen = batches(chosen, epoch=epoch, data_spec=spec(class_balanced=True))
        labels = torch.cat([batch.given_labels_B[batch.valid_B] for batch in seen])
        assert torch.bincount(labels, minlength=3).tolist() == [counts.min()] * 3
    assert sum(int(batch.valid_B.sum()) for batch in batches(chosen, shuffle=False)) == 8


def test_a_storage_that_is_away_is_no_bad_example(train):
    class Away:
        def __getattr__(self, name):
            raise StorageError("no answer")

    lost = dataclasses.replace(train, storage=Away())
    with loader(lost, spec(max_bad_fraction=1)) as opened:
        with pytest.raises(StorageError, match="no answer"):
            next(opened.epoch(1))
        assert opened.quarantine == []
    assert not loader_threads()


class Remote:
    """Files that the reader knows no folder of."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> object:
        return getattr(self._storage, name)


@pytest.mark.parametrize(("order", "shuffle"), [("windowed", True), ("global", False)])
def test_each_rank_says_beforehand_which_shards_it_will_need(train, tmp_path, monkeypatch, order, shuffle):
    remote = dataclasses.replace(train, storage=Remote(train.storage))
    for rank in range(2):
        told: list[list[int]] = []
        monkeypatch.setattr(ShardReader, "prefetch", lambda _, shards, told=told: told.append(shards))
        settings = {"shuffle": shuffle, "rank": rank, "world_size": 2, "batch_size": 4}
        with loader(remote, spec(order=order, window_shards=2), cache=ShardCache(tmp_path, 1), **settings) as opened:
            found = list(opened.epoch(1, 4))
        assert len(told) == len(found) == 4
        for shards, batch in zip(told, found, strict=True):
            assert set(remote.shard_indices[batch.indices_B].tolist()) <= set(shards)
    with loader(remote, cache=ShardCache(tmp_path, 1)) as opened:
        list(opened.epoch(1))
    assert len(told) == 4  # a global order may need any shard next


def test_what_cannot_be_split_or_is_empty_is_refused(train):
    with pytest.raises(ValueError, match="batch_size 6 must be a multiple of the number of ranks 4"):
        loader(train, world_size=4)
    with pytest.raises(ValueError, match="split 'train' has no examples"):
        loader(train.select([]))


def test_columns_can_be_handed_to_torch_without_a_warning(train):
    for field in dataclasses.fields(train):
        column = getattr(train, field.name)
        if isinstance(column, np.ndarray) and column.dtype != object:
            torch.from_numpy(column)
