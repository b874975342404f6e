"""Decoding on a device, the CPU in the GPU's place: all but nvJPEG itself."""

from __future__ import annotations

import pytest
import torch
from cuda_decode_cases import check_one_bad_picture_hurts_no_other, check_pixels_are_pillows, decode_boxes
from sample_data import encoded, photo
from training import digits_spec, noisy_digits

from data_pipeline.examples import open_split
from data_pipeline.loader import Batch, Loader
from data_pipeline.pictures import cuda_decode
from data_pipeline.pictures.crop import Box
from data_pipeline.spec import DataSpec
from trainer.spec import JobSpec

CPU = torch.device("cpu")


def test_pixels_are_pillows():
    check_pixels_are_pillows(CPU)


def test_one_bad_picture_hurts_no_other():
    check_one_bad_picture_hurts_no_other(CPU)


def test_few_pixels_lie_on_the_device_at_a_time(monkeypatch):
    calls = []
    decode_jpeg = cuda_decode.decode_jpeg
    monkeypatch.setattr(cuda_decode, "MAX_PIXELS", 2 * 120 * 90)
    monkeypatch.setattr(
        cuda_decode, "decode_jpeg", lambda files, *rest: (calls.append(len(files)), decode_jpeg(files, *rest))[1]
    )
    files = [encoded(photo(number)) for number in range(5)]
    batch, problems = decode_boxes(CPU, list(files), [Box(0, 0, 120, 90)] * 5)
    assert calls == [2, 2, 1]
    assert problems == [None] * 5
    for number, data in enumerate(files):
        alone, _ = decode_boxes(CPU, [data], [Box(0, 0, 120, 90)])
        assert torch.equal(batch[number], alone[0])


def test_no_memory_on_the_device_is_no_damaged_picture(monkeypatch):
    def decode_jpeg(*_):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(cuda_decode, "decode_jpeg", decode_jpeg)
    with pytest.raises(torch.OutOfMemoryError):
        decode_boxes(CPU, [encoded(photo(1))], [Box(0, 0, 120, 90)])


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_loader_gives_the_same_examples_crops_and_labels(built_clothing, shuffle):
    table = open_split(built_clothing[1], "train")

    def batches(device: torch.device | None) -> list[Batch]:
        spec = DataSpec(manifest="manifest.json", image_size=24)
        with Loader(
            table, spec, rank=0, world_size=1, seed=5, shuffle=shuffle, batch_size=6, decode_device=device
        ) as loader:
            return list(loader.epoch(1))

    for ours, by_cpu in zip(batches(CPU), batches(None), strict=True):
        for name in ("given_labels_B", "indices_B", "valid_B", "flip_B"):
            assert torch.equal(getattr(ours, name), getattr(by_cpu, name))
        assert (ours.images_BHWC.int() - by_cpu.images_BHWC.int()).abs().float().mean() < 8  # of another crop: tens


def test_a_job_that_decodes_on_a_gpu_has_to_have_one(tmp_path):
    spec = digits_spec(noisy_digits(tmp_path / "digits"))
    with pytest.raises(ValueError, match=r"data\.decode_on 'cuda' needs resources\.gpus_per_worker 1; it is 0"):
        JobSpec.model_validate(spec.model_dump() | {"data": spec.data.model_dump() | {"decode_on": "cuda"}})
