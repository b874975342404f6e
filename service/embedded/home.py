"""The home folder of an embedded service: who serves it, and where. Imports nothing heavy: every command reads it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import IO, Final

from pydantic import BaseModel, ConfigDict, ValidationError

DEFAULT_HOME: Final = "~/.hush"
SERVER_FILE: Final = "server.json"
LOCK_FILE: Final = "lock"
LOCK_ATTEMPTS: Final = 5


class HomeInUseError(ValueError):
    """Another server serves this home folder."""


class ServerAddresses(BaseModel):
    """`<home>/server.json`: where the service of this home answers, while it runs."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    url: str
    """Address of the API, without a slash at the end."""
    mlflow_url: str
    ray_url: str
    """Address of Ray's dashboard."""
    pid: int
    token: str | None = None
    """What the API asks commands on this machine for; the file is its owner's alone."""


def home_folder(home: Path | None = None) -> Path:
    """The home folder asked for, else `HUSH_HOME`, else `~/.hush`; absolute, not made yet."""
    folder = home or Path(os.environ.get("HUSH_HOME") or DEFAULT_HOME)
    try:
        return folder.expanduser().absolute()
    except RuntimeError:  # ~somebody, who is nobody here
        raise ValueError(f"home folder {str(folder)!r}: there is no such user") from None


def lock_home(home: Path) -> IO[str]:
    """Make the home folder (mode 0700) and hold its lock until the file is closed; HomeInUseError if it is taken."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = (home / LOCK_FILE).open("a+")
    for _ in range(LOCK_ATTEMPTS):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        time.sleep(0.1)  # a command that looks for the server (find_server) holds the lock for an instant
    lock.close()
    addresses = _read_addresses(home)
    holder = f"by process {addresses.pid} at {addresses.url}" if addresses else "by a server that is starting or ending"
    raise HomeInUseError(f"{home} is already served {holder}; stop that one, or choose another --home")


def write_addresses(home: Path, addresses: ServerAddresses) -> None:
    """Tell other processes where the service answers; readers see the old file or the new one, never half of it."""
    aside = home / f".{SERVER_FILE}"
    aside.unlink(missing_ok=True)  # a left-over would keep its own mode
    aside.touch(mode=0o600)  # it holds a token
    aside.write_text(addresses.model_dump_json(indent=2) + "\n")
    aside.replace(home / SERVER_FILE)


def find_server(home: Path) -> ServerAddresses | None:
    """Where the service of this home answers; None if none runs, even if one that was killed left its file behind."""
    try:
        with (home / LOCK_FILE).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_addresses(home)
    except OSError:
        return None
    return None


def _read_addresses(home: Path) -> ServerAddresses | None:
    try:
        return ServerAddresses.model_validate_json((home / SERVER_FILE).read_bytes())
    except (OSError, ValidationError):
        return None
