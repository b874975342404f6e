"""Data on S3, behind a network that fails: every example exactly once, and the same batches as from a disk."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
import torch
from faulty_proxy import ALL_FAULTS
from s3_server import QUICK, S3Server, s3_server
from sample_data import build_clothing, make_clothing

from data_pipeline.building.build import BuildOptions
from data_pipeline.errors import BadImageError, StorageError
from data_pipeline.examples import ExampleTable, open_split
from data_pipeline.loader import Batch, Loader
from data_pipeline.manifest import Manifest
from data_pipeline.reading.cache import ShardCache
from data_pipeline.reading.reader import ShardReader
from data_pipeline.spec import DataSpec
from data_pipeline.storage import storage_for
from data_pipeline.storage.patience import Patience

AWAY = Patience(retry_s=0.3, first_wait_s=0.01, silence_s=0.3)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """20 training pictures in 7 shards."""
    folder = tmp_path_factory.mktemp("clothing")
    return build_clothing(make_clothing(folder / "raw"), folder / "built", BuildOptions(shard_size=3))


@pytest.fixture(scope="module")
def server(local: Manifest) -> Iterator[S3Server]:
    with s3_server() as running:
        running.upload(local.root, "set")
        yield running


@pytest.fixture
def remote(server: S3Server) -> Manifest:
    """The same data set; its server does not fail yet."""
    server.proxy.set_faults(["none"])
    url = server.s3_url("set/manifest.json")
    manifest = Manifest.load(url)
    assert manifest.url == url
    return manifest.at(storage_for(server.s3_url("set"), QUICK))


def cache_of(tmp_path: Path, manifest: Manifest, size: str) -> ShardCache | None:
    """For how much of the training split there is room."""
    total = sum(shard.size_bytes for shard in manifest.splits["train"].shards)
    share = {"none": 0.0, "two shards": 0.35, "all": 1.0}[size]
    return ShardCache(tmp_path / "cache", int(share * total)) if share else None


def epochs(
    table: ExampleTable, cache: ShardCache | None, *, order: str = "global", world_size: int = 1
) -> list[list[Batch]]:
    """The batches of two epochs, of all ranks."""
    spec = DataSpec.model_validate(
        {"manifest": "unused", "image_size": 32, "order": order, "window_shards": 2, "num_threads": 2}
    )
    with ExitStack() as stack:
        loaders = [
            stack.enter_context(
                Loader(table, spec, rank=rank, world_size=world_size, seed=5, shuffle=True, batch_size=4, cache=cache)
            )
            for rank in range(world_size)
        ]
        batches = [[batch for loader in loaders for batch in loader.epoch(epoch)] for epoch in range(2)]
        assert not any(loader.quarantine for loader in loaders)
    return batches


@pytest.mark.parametrize(
    "how", [*itertools.product(["global", "windowed"], ["none", "two shards", "all"])], ids=", ".join
)
def test_every_example_exactly_once(
    server: S3Server, local: Manifest, remote: Manifest, tmp_path: Path, how: tuple[str, str]
) -> None:
    order, cached = how
    server.proxy.set_faults(ALL_FAULTS)
    table = open_split(remote, "train")
    found = epochs(table, cache_of(tmp_path, remote, cached), order=order, world_size=2)
    expected = epochs(open_split(local, "train"), None, order=order, world_size=2)
    for of_remote, of_local in zip(found, expected, strict=True):
        rows = torch.cat([batch.indices_B[batch.valid_B] for batch in of_remote])
        assert Counter(rows.tolist()) == dict.fromkeys(range(20), 1)
        for batch, same in zip(of_remote, of_local, strict=True):
            assert torch.equal(batch.indices_B, same.indices_B)
            assert torch.equal(batch.images_BHWC[batch.valid_B], same.images_BHWC[same.valid_B])
    assert set(ALL_FAULTS) == set(server.proxy.counts)


def test_neighbours_come_in_one_request(server: S3Server, remote: Manifest) -> None:
    table = open_split(remote, "train")
    server.proxy.set_faults(["none"])
    with closing(ShardReader(table)) as reader:
        contents = reader.read_many(np.arange(len(table))[::-1])
    assert all(isinstance(content, bytes) for content in contents)
    assert Counter(path for _, path, _ in server.proxy.requests) == {
        f"/data/set/{shard.path}": 1 for shard in table.shard_files
    }


def test_what_is_in_the_cache_is_not_asked_for_again(server: S3Server, remote: Manifest, tmp_path: Path) -> None:
    table, cache = open_split(remote, "train"), cache_of(tmp_path, remote, "all")
    assert cache is not None
    for shard in table.shard_files:
        cache.fetch(shard, remote.storage)
    server.proxy.set_faults(["500"])
    epochs(table, cache)
    assert server.proxy.requests == []


@pytest.mark.parametrize("cached", ["none", "all"])
def test_a_storage_that_is_away_is_no_bad_example(
    server: S3Server, remote: Manifest, tmp_path: Path, cached: str
) -> None:
    table = open_split(remote.at(storage_for(server.s3_url("set"), AWAY)), "train")
    server.proxy.set_faults(["500"])
    with pytest.raises(StorageError, match=r"^s3://data/set/train-\d+\.tar: "):
        epochs(table, cache_of(tmp_path, remote, cached))


def test_a_damaged_shard_is_bad_examples(server: S3Server, remote: Manifest) -> None:
    table = open_split(remote, "train")
    gone, cut, flipped, *_ = table.shard_files
    content = bytearray(server.get(f"set/{flipped.path}"))
    content[int(table.offsets[table.shards == flipped.path][0])] ^= 1
    elsewhere = "damaged"
    for shard in table.shard_files[1:]:
        server.put(f"{elsewhere}/{shard.path}", server.get(f"set/{shard.path}"))
    server.put(f"{elsewhere}/{flipped.path}", bytes(content))
    server.put(f"{elsewhere}/{cut.path}", server.get(f"set/{cut.path}")[:600])
    damaged = open_split(remote, "train")
    object.__setattr__(damaged, "storage", storage_for(server.s3_url(elsewhere), QUICK))
    server.proxy.set_faults(ALL_FAULTS)
    with closing(ShardReader(damaged)) as reader:
        contents = reader.read_many(range(len(damaged)))
    reasons = Counter(str(content).split(" at ")[0] for content in contents if isinstance(content, BadImageError))
    assert reasons == {
        f"shard {gone.path}: No such file or directory": 3,
        f"shard {cut.path} ends inside the image": 3,
        f"shard {flipped.path}: bytes": 1,
    }


def test_what_rots_in_the_cache_is_read_from_afar(server: S3Server, remote: Manifest, tmp_path: Path) -> None:
    table, cache = open_split(remote, "train"), ShardCache(tmp_path / "cache", 10**9)
    shard = table.shard_files[0]
    cache.fetch(shard, remote.storage)
    file = tmp_path / "cache" / shard.sha256
    content = bytearray(file.read_bytes())
    content[int(table.offsets[0])] ^= 1
    file.write_bytes(content)
    small = ShardCache(tmp_path / "cache", shard.size_bytes)  # too small to fetch the others meanwhile
    with closing(ShardReader(table, small)) as reader:
        assert isinstance(reader.read_many([0])[0], bytes)
        assert not file.exists()


def test_reads_over_http(server: S3Server, local: Manifest) -> None:
    server.proxy.set_faults(["none"])
    manifest = Manifest.load(server.http_url("set/manifest.json"))
    assert manifest.digest == local.digest
    server.proxy.set_faults(ALL_FAULTS)
    table = open_split(manifest.at(storage_for(server.http_url("set"), QUICK)), "train")
    with closing(ShardReader(table)) as reader, closing(ShardReader(open_split(local, "train"))) as same:
        assert reader.read_many(range(len(table))) == same.read_many(range(len(table)))


def test_a_manifest_that_cannot_be_loaded(server: S3Server, remote: Manifest) -> None:
    with pytest.raises(ValueError, match=r"manifest 's3://data/no/manifest.json': there is no such file"):
        Manifest.load(server.s3_url("no/manifest.json"))
    for url, reason in {
        "pipe:cat /etc/passwd": "pipe: is not read; give a path, s3://, http:// or https://",
        "file:///etc/passwd": "file: is not read",
        "http://user:secret@host/manifest.json": "user, password",
        "s3://": "names no",
        "s3://data": "names no",
    }.items():
        with pytest.raises(ValueError, match=reason):
            Manifest.load(url)
