"""Label noise that a data set cannot take is refused before a job is stored."""

from __future__ import annotations

from pathlib import Path

import pytest
from sample_data import build_digits

from data_pipeline.building.build import BuildOptions
from data_pipeline.spec import PairflipCorruption
from service.api.admission import admit
from service.api.errors import ProblemError
from trainer.spec import JobSpec


def admitted(manifest: Path, corruption: dict[str, object]) -> None:
    data = {"manifest": str(manifest), "corruption": corruption}
    admit(JobSpec.model_validate({"name": "job", "data": data}), (manifest.parent,), ())


def refusal(manifest: Path, corruption: dict[str, object]) -> str:
    with pytest.raises(ProblemError) as refused:
        admitted(manifest, corruption)
    assert refused.value.status == 422
    return str(refused.value.detail)


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    build_digits(folder)
    return folder


def test_noise_that_suits_the_classes_is_admitted(digits_folder):
    admitted(digits_folder / "manifest.json", {"kind": "class_dependent", "k": 0.4, "beta": 0.05})


def test_too_much_noise_for_so_many_classes(digits_folder):
    detail = refusal(digits_folder / "manifest.json", {"kind": "class_dependent", "k": 0.5, "beta": 0.05})
    assert detail.startswith("data.corruption = {'kind': 'class_dependent', 'k': 0.5, 'beta': 0.05")
    assert "k + beta * 10 = 1 must be below 1" in detail


def test_noise_upon_noise(tmp_path):
    build_digits(tmp_path, BuildOptions(corruption=PairflipCorruption(rate=0.3)))
    detail = refusal(tmp_path / "manifest.json", {"kind": "symmetric", "rate": 0.2})
    assert "data set 'digits' was built with 'pairflip' noise already" in detail


def test_a_manifest_that_is_away_is_told_of_once(tmp_path):
    detail = refusal(tmp_path / "manifest.json", {"kind": "symmetric", "rate": 0.2})
    assert detail.startswith("data.manifest")
    assert "data.corruption" not in detail
