"""Guardian: a small process that starts the servers of `hush serve` and outlives nobody.

It is a *child subreaper* (prctl(2)): whatever its descendants orphan, daemons of Ray included, becomes its own child.
So the tree under it is exactly what was started here, and killing that tree leaves nothing. It ends everything when the
pipe from its parent closes, which the kernel does even when the parent was killed by SIGKILL. Should it be killed
itself, its servers get SIGTERM (PR_SET_PDEATHSIG) and their tree falls to the parent, a subreaper too, which clears up.

    parent --(JSON lines on stdin: Start, Stop, RemoveAtEnd)--> guardian --(JSON lines on stdout: Exited)--> parent
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import psutil

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36

GRACE_S: Final = 6.0
"""Seconds that servers asked to end (SIGTERM) have before they are killed (SIGKILL)."""


class GuardianLostError(Exception):
    """The guardian process is gone, though it was not asked to go."""


@dataclass(frozen=True)
class Start:
    """Start a server; its stdout and stderr are appended to `log`."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str]
    log: str


@dataclass(frozen=True)
class Stop:
    """Ask a server to end."""

    name: str


@dataclass(frozen=True)
class RemoveAtEnd:
    """A file or folder to remove when everything has ended."""

    path: str


@dataclass(frozen=True)
class Exited:
    """A server ended."""

    name: str
    returncode: int


def become_subreaper() -> None:
    """Make this process the parent of whatever its descendants orphan."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def kill_descendants() -> None:
    """Kill every descendant of this process, and collect them all: it must have no children that others wait for."""
    # An orphan that changes parents while /proc is read can be missed once, so look until nothing is left.
    while _reap_all():
        with contextlib.suppress(psutil.NoSuchProcess):
            for descendant in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    descendant.kill()
        time.sleep(0.01)


def _reap_all() -> bool:
    """Collect all ended children; whether any child is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) failed")


# ------------------------------------------------------------------------------------------------- the parent's side


class Guardian:
    """The parent's handle on the guardian process."""

    def __init__(self, keep_open: Sequence[int] = ()) -> None:
        """Start it in a session of its own, out of reach of the terminal's Ctrl-C; it holds `keep_open` to its end."""
        become_subreaper()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "service.embedded.guardian"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            pass_fds=keep_open,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests = self._process.stdin
        self._reports = self._process.stdout
        os.set_blocking(self._reports.fileno(), False)
        self._unread = b""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, request: Start | Stop | RemoveAtEnd) -> None:
        """Ask for something; a guardian that has ended is found out by `exited`."""
        line = json.dumps({type(request).__name__: asdict(request)}) + "\n"
        with contextlib.suppress(BrokenPipeError):
            self._requests.write(line.encode())
            self._requests.flush()

    def exited(self) -> list[Exited]:
        """Servers that ended since the last call, without waiting; GuardianLostError if it has ended itself."""
        self._unread += self._reports.read() or b""
        *lines, self._unread = self._unread.split(b"\n")
        if not lines and self._process.poll() is not None:
            raise GuardianLostError
        return [Exited(**json.loads(line)) for line in lines]

    def close(self) -> None:
        """End all servers, in at most GRACE_S, and then what is left of them."""
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        self._process.wait()
        self._reports.close()
        kill_descendants()

    def hurry(self) -> None:
        """Kill the servers without further grace; `close` then returns soon."""
        self._process.send_signal(signal.SIGTERM)


# ----------------------------------------------------------------------------------------------- the guardian's side


class _Servers:
    """The servers that the guardian started."""

    def __init__(self) -> None:
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.names: dict[int, str] = {}
        self.remove_at_end: list[Path] = []

    def obey(self, request: Mapping[str, Mapping[str, object]]) -> None:
        """Do what one line from the parent asks for."""
        ((kind, fields),) = request.items()
        match kind:
            case "Start":
                self._start(Start(**fields))  # type: ignore[arg-type]  # the parent's asdict(Start)
            case "Stop":
                self.terminate(str(fields["name"]))
            case "RemoveAtEnd":
                self.remove_at_end.append(Path(str(fields["path"])))
            case _:
                raise AssertionError(f"unknown request {kind}")

    def terminate(self, name: str | None = None) -> None:
        """Ask one server, or all, to end. By pid: Popen.terminate might collect an ended one itself."""
        for pid in [pid for pid, its_name in self.names.items() if name in (None, its_name)]:
            os.kill(pid, signal.SIGTERM)

    def reap(self) -> list[Exited]:
        """Collect all ended children, adopted ones included; those that were servers."""
        ended = []
        with contextlib.suppress(ChildProcessError):
            while (waited := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = waited
                if pid in self.running:
                    returncode = os.waitstatus_to_exitcode(status)
                    self.running.pop(pid).returncode = returncode  # so that Popen does not wait for it again
                    ended.append(Exited(self.names.pop(pid), returncode))
        return ended

    def _start(self, start: Start) -> None:
        with Path(start.log).open("ab") as log:
            process = subprocess.Popen(
                start.argv,
                env=start.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - this process has one thread
            )
        self.running[process.pid] = process
        self.names[process.pid] = start.name


def _die_with_parent() -> None:
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def main() -> None:
    """Start what the parent asks for, until its pipe closes or SIGTERM comes; then end everything."""
    become_subreaper()
    wakeup_read, wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    terminated = False

    def on_sigterm(_number: int, _frame: object) -> None:
        nonlocal terminated
        terminated = True

    signal.signal(signal.SIGTERM, on_sigterm)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: None)  # not SIG_IGN, which the servers would inherit

    servers = _Servers()
    try:
        _obey_until_end(servers, wakeup_read, lambda: terminated)
    finally:
        deadline = time.monotonic() + GRACE_S
        servers.terminate()
        while servers.running and time.monotonic() < deadline and not terminated:
            servers.reap()
            time.sleep(0.05)
        kill_descendants()
        for path in servers.remove_at_end:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _obey_until_end(servers: _Servers, wakeup: int, terminated: Callable[[], bool]) -> None:
    """Read requests and report exits, until the parent's pipe closes or SIGTERM comes."""
    unread = b""
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        selector.register(wakeup, selectors.EVENT_READ)
        while not terminated():
            ready = [key.fd for key, _ in selector.select()]
            if wakeup in ready:
                os.read(wakeup, 4096)
                for exited in servers.reap():
                    with contextlib.suppress(OSError):
                        os.write(1, json.dumps(asdict(exited)).encode() + b"\n")
            if 0 in ready:
                received = os.read(0, 65536)
                if not received:
                    return
                *lines, unread = (unread + received).split(b"\n")
                for line in lines:
                    servers.obey(json.loads(line))


if __name__ == "__main__":
    main()
