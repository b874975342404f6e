"""Settings come from arguments and from HUSH_*; wrong ones are named."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings


def test_everything_lies_in_home(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    assert settings.database == f"sqlite:///{tmp_path}/hush.db"
    assert settings.storage_dir == tmp_path / "storage"
    assert not list(tmp_path.iterdir())  # to make settings makes nothing else


def test_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HUSH_DATABASE_URL", "postgresql://db/hush")
    monkeypatch.setenv("HUSH_ALLOWED_ROOTS", f"{tmp_path}:/data")
    monkeypatch.setenv("HUSH_PUBLIC_URL", "http://hush:8000/")
    settings = Settings()
    assert settings.database == "postgresql://db/hush"
    assert settings.roots == (tmp_path, Path("/data"))
    assert settings.public_url == "http://hush:8000"


def test_default_roots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)
    assert Settings(home=tmp_path / "hush").roots == (tmp_path / "hush", tmp_path / "user", tmp_path)


def test_roots_are_compared_after_symlinks(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    assert Settings(allowed_roots=(tmp_path / "link",)).roots == (tmp_path / "data",)


@pytest.mark.parametrize("wrong", [{"ray_address": "127.0.0.1:8265"}, {"max_body_bytes": 1}, {"nonsense": 1}])
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Settings.model_validate(wrong)
