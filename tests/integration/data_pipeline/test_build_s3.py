"""Building to a real S3 endpoint that fails now and then: the same bytes as in a folder, and nothing left over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from s3_server import BUCKET, S3Server, s3_server
from sample_data import ClothingSet, build_clothing, encoded, make_clothing

from data_pipeline.building.build import BuildOptions, Progress, build
from data_pipeline.check import check
from data_pipeline.manifest import Manifest
from data_pipeline.sources.base import SourceExample
from data_pipeline.sources.clothing1m import Clothing1M

OPTIONS = BuildOptions(shard_size=8, num_processes=1)


class CountedClothing(Clothing1M):
    """Remembers which pictures were read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.read_ids: list[str] = []

    def read(self, example: SourceExample) -> bytes:
        self.read_ids.append(example.example_id)
        return super().read(example)


@pytest.fixture(scope="module")
def running_server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def server(running_server) -> S3Server:
    """It does what it should until it is told otherwise."""
    running_server.proxy.set_faults(["none"])
    return running_server


@pytest.fixture
def clothing(tmp_path) -> ClothingSet:
    """A raw data set to build."""
    return make_clothing(tmp_path / "clothing")


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def stored(server: S3Server, prefix: str) -> dict[str, bytes]:
    return {key.removeprefix(f"{prefix}/"): server.get(key) for key in server.keys(prefix)}


@pytest.mark.parametrize("num_processes", [1, 2])
def test_the_bytes_are_those_of_a_local_build(server, clothing, tmp_path, num_processes):
    server.proxy.set_faults(["500", "none", "cut", "none", "cut headers", "none"])
    prefix = f"whole-{num_processes}"
    with Clothing1M(clothing.root) as source:
        options = BuildOptions(shard_size=8, num_processes=num_processes)
        result = build(source, server.s3_url(prefix), options)
        assert result.is_new
        assert not build(source, server.s3_url(prefix), OPTIONS).is_new
    server.proxy.set_faults(["none"])
    build_clothing(clothing, tmp_path / "local")
    assert stored(server, prefix) == content_of(tmp_path / "local")
    assert result.manifest.url == server.s3_url(f"{prefix}/manifest.json")
    assert check(Manifest.load(result.manifest.url)) == []


def test_a_build_that_was_stopped_keeps_its_whole_shards(server, clothing, tmp_path):
    def stop(progress: Progress) -> None:
        if progress.split == "val":
            raise KeyboardInterrupt

    url = server.s3_url("stopped")
    with CountedClothing(clothing.root) as source:
        with pytest.raises(KeyboardInterrupt):
            build(source, url, OPTIONS, stop)
        assert "manifest.json" not in stored(server, "stopped")
        assert {"train-000002.tar", ".building/train-000002.json"} <= set(stored(server, "stopped"))
        server.put("stopped/train-000000.tar", server.get("stopped/train-000000.tar")[:-512])
        source.read_ids.clear()
        build(source, url, OPTIONS)
        assert len(source.read_ids) == 8 + 5 + 6
    build_clothing(clothing, tmp_path / "local")
    assert stored(server, "stopped") == content_of(tmp_path / "local")


def test_a_damaged_shard_is_repaired_and_another_data_set_only_replaced_by_force(server, clothing, tmp_path):
    url = server.s3_url("again")
    with Clothing1M(clothing.root) as source:
        build(source, url, OPTIONS)
        whole = stored(server, "again")
        server.put("again/val-000000.tar", b"damaged")
        assert build(source, url, OPTIONS).is_new
        assert stored(server, "again") == whole
        with pytest.raises(ValueError, match="s3://data/again holds another build of data set 'clothing1m'"):
            build(source, url, BuildOptions(shard_size=30))
        assert stored(server, "again") == whole
        build(source, url, BuildOptions(shard_size=30, force=True))
    build_clothing(clothing, tmp_path / "local", BuildOptions(shard_size=30))
    assert stored(server, "again") == content_of(tmp_path / "local")


def test_large_shards_are_sent_in_parts(server, clothing, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    picture = encoded(Image.fromarray(noise), "PNG")
    for key in clothing.val:
        clothing.image(key).write_bytes(picture)
    with Clothing1M(clothing.root) as source:
        build(source, server.s3_url("large"), OPTIONS)
    assert len(server.get("large/val-000000.tar")) > 5 * len(picture) > 30 << 20
    parts = [path for method, path, _ in server.proxy.requests if method == "PUT" and "partNumber" in path]
    assert len(parts) > 5
    assert all(f"/{BUCKET}/large/val-000000.tar" in path for path in parts)


def test_over_http_nothing_is_built(server, clothing):
    with (
        Clothing1M(clothing.root) as source,
        pytest.raises(ValueError, match="can only be read from; give a folder or s3"),
    ):
        build(source, server.http_url("new"), OPTIONS)


def test_a_bucket_that_is_not_there_is_named(server, clothing):
    with Clothing1M(clothing.root) as source, pytest.raises(OSError, match="s3://elsewhere/set: there is no such buck"):
        build(source, "s3://elsewhere/set", OPTIONS)


@pytest.mark.parametrize("out", ["pipe:cat >file", "gs://bucket/set", "file:///tmp/set"])
def test_other_places_are_refused(clothing, out):
    with Clothing1M(clothing.root) as source, pytest.raises(ValueError, match="is not read; give a path, s3://"):
        build(source, out, OPTIONS)
