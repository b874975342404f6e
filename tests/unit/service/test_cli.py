"""The command line without a service: what it says when something is wrong, and how fast it starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sample_data import build_digits
from typer.testing import CliRunner

from service.cli import app
from service.cli.spec_file import read_job, read_study

SPEC = """
name: digits
data: {manifest: shards/manifest.json, batch_size: 8, image_size: 8}
method: {kind: sgd, lr: 0.5}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "specs" / "job.yaml"
    path.parent.mkdir()
    path.write_text(SPEC)
    return path


def run(*argv: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(argv), env={"HUSH_URL": "http://127.0.0.1:9", "COLUMNS": "120"})
    return result.exit_code, result.stdout, result.stderr


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys, contextlib, service.cli\n"
        "with contextlib.suppress(SystemExit): service.cli.app(['--help'])\n"
        "print(sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "hush demo" in done.stdout
    for heavy in ("torch", "ray", "mlflow", "fastapi", "pydantic", "httpx", "numpy", "sqlalchemy"):
        assert f"'{heavy}'" not in done.stderr, heavy


@pytest.mark.parametrize(
    "command",
    [
        "serve",
        "submit",
        "jobs",
        "show",
        "events",
        "cancel",
        "examples",
        "demo",
        "data",
        "data build",
        "logs",
        "study",
        "study create",
        "study show",
    ],
)
def test_every_command_teaches(command: str) -> None:
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert "Usage" in out


def test_a_bad_spec_is_one_line_and_code_2(spec: Path) -> None:
    spec.write_text(SPEC.replace("lr: 0.5", "lr: -1"))
    code, out, err = run("submit", str(spec))
    assert (code, out) == (2, "")
    assert err == f"hush: {spec}: method.lr = -1: must be greater than 0\n"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.lr", "--set method.lr: must be FIELD=VALUE, e.g. method.lr=0.1"),
        ("=3", "--set =3: must be FIELD=VALUE, e.g. method.lr=0.1"),
        ("method.lr=[", "'[' is not YAML"),
        ("methd.lr=1", "methd"),
        ("name.first=x", "name = {'first': 'x'}: must be a valid string"),
        ("method.momentum=2", "method.momentum = 2"),
        ("data.manifest=~nobody-here/m.json", "there is no such user"),
    ],
)
def test_a_bad_override_names_itself(spec: Path, override: str, message: str) -> None:
    code, out, err = run("submit", str(spec), "--set", override)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_overrides_are_yaml(spec: Path) -> None:
    job = read_job(spec, ["method.lr=1e-2", "schedule.epochs=3", "label_noise.num_examples=all", "data.image_size=16"])
    assert job.method.lr == 0.01
    assert (job.schedule.epochs, job.label_noise.num_examples, job.data.image_size) == (3, "all", 16)


def test_a_relative_manifest_is_seen_from_here_first(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_digits(spec.parent / "shards")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert read_job(spec).data.manifest == str(spec.parent / "shards/manifest.json")
    build_digits(here / "shards")
    assert read_job(spec).data.manifest == str(here / "shards/manifest.json")


def test_relative_weights_are_seen_alike(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(spec.parent.parent)
    (spec.parent / "best.pt").touch()
    assert read_job(spec, ["model.weights=best.pt"]).model.weights == str(spec.parent / "best.pt")
    for known in ("none", "imagenet"):
        assert read_job(spec, [f"model.weights={known}"]).model.weights == known


def test_nobody_answers(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.cli.session.CONNECT_MAX_S", 0.1)
    for argv in (["jobs"], ["submit", str(spec)], ["show", "digits"], ["events", "digits", "--follow"]):
        code, out, err = run(*argv)
        assert (code, out) == (2, "")
        assert "nobody answers at http://127.0.0.1:9" in err
        assert "hush serve" in err
        assert err.count("\n") == 1


def test_wrong_options_say_what_is_allowed() -> None:
    assert "QUEUED, STARTING" in run("jobs", "--state", "DONE")[2]


def test_a_service_that_others_reach_needs_a_token(tmp_path: Path) -> None:
    home = ("--home", str(tmp_path / "home"))
    code, out, err = run("serve", "--host", "0.0.0.0", *home)
    assert (code, out) == (2, "")
    assert "nobody has a token" in err
    assert "hush token create" in err


STUDY = """
name: rho
base: {data: {manifest: shards/manifest.json, batch_size: 8}, model: {weights: best.pt}, schedule: {epochs: 3}}
grid: {data.manifest: [shards/manifest.json, s3://bucket/manifest.json], model: [{weights: none}, {weights: best.pt}]}
points: [{data: {manifest: other/manifest.json}}, {model.weights: imagenet}]
"""


def test_paths_of_a_study_are_seen_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = str(tmp_path)
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    study = read_study(path, ["base.schedule.epochs=5", "seeds=[1, 2]"])
    assert study.base["data"] == {"manifest": f"{here}/shards/manifest.json", "batch_size": 8}
    assert study.base["model"] == {"weights": f"{here}/best.pt"}
    assert study.base["schedule"] == {"epochs": 5}
    assert study.grid == {
        "data.manifest": (f"{here}/shards/manifest.json", "s3://bucket/manifest.json"),
        "model": ({"weights": "none"}, {"weights": f"{here}/best.pt"}),
    }
    assert study.points == ({"data": {"manifest": f"{here}/other/manifest.json"}}, {"model.weights": "imagenet"})
    assert study.seeds == (1, 2)


def test_a_bad_study_is_a_line_a_field(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("name: rho\nbase: {}\nseeds: [-1]\nearly: yes\n")
    code, out, err = run("study", "create", str(path))
    assert (code, out) == (2, "")
    assert f"hush: {path}: seeds.0 = -1: must be greater than or equal to 0" in err
    assert f"hush: {path}: early = True: is no field here; allowed are api_version, name, base" in err
