"""The home folder: one server at a time, found only while it lives."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.embedded.home import HomeInUseError, ServerAddresses, find_server, home_folder, lock_home, write_addresses

ADDRESSES = ServerAddresses(
    url="http://127.0.0.1:1", mlflow_url="http://127.0.0.1:2", ray_url="http://127.0.0.1:3", pid=4
)


def test_a_server_is_found_while_it_holds_the_lock(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert find_server(home) is None
    with lock_home(home):
        assert find_server(home) is None, "it has not said where it is"
        write_addresses(home, ADDRESSES)
        assert find_server(home) == ADDRESSES
    assert find_server(home) is None, "the file of a server that was killed counts for nothing"
    assert home.stat().st_mode & 0o777 == 0o700


def test_a_home_has_one_server(tmp_path: Path) -> None:
    with lock_home(tmp_path):
        with pytest.raises(HomeInUseError, match="starting or ending"):
            lock_home(tmp_path)
        write_addresses(tmp_path, ADDRESSES)
        with pytest.raises(HomeInUseError, match=r"by process 4 at http://127\.0\.0\.1:1"):
            lock_home(tmp_path)
    lock_home(tmp_path).close()


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"url": 3}'])
def test_a_broken_address_file_is_as_none(tmp_path: Path, content: str) -> None:
    with lock_home(tmp_path):
        (tmp_path / "server.json").write_text(content)
        assert find_server(tmp_path) is None


def test_the_home_asked_for_comes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HUSH_HOME", raising=False)
    assert home_folder() == tmp_path / ".hush"
    monkeypatch.setenv("HUSH_HOME", str(tmp_path / "b"))
    assert home_folder() == tmp_path / "b"
    assert home_folder(Path("~/c")) == tmp_path / "c"
