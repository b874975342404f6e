"""Work shared out to processes: tasks in, results back as they come. A process that dies is an error, not a wait.

Processes are spawned, not forked: whoever builds may run threads. What is sent to them (the work, each task) and what
comes back has to be picklable.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import ForkingPickler
from typing import Generic, Protocol, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
Task_contra = TypeVar("Task_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)

EXAMPLES_PER_PROCESS = 10_000
"""Take about as long as the start of a process: two or three seconds."""

OnStep = Callable[[int], None]
"""Told how many examples have been dealt with since it was told last."""


class Work(Protocol[Task_contra, Result_co]):
    """What is done with each task. A ValueError or an OSError ends all and reaches whoever asked."""

    def __call__(self, task: Task_contra, on_step: OnStep, /) -> Result_co:
        """The task's result."""
        ...


@dataclass(frozen=True)
class _Done(Generic[Result]):
    result: Result


@dataclass(frozen=True)
class _Worker:
    process: SpawnProcess
    connection: Connection


def sensible_num_processes(num_examples: int) -> int:
    """One for each CPU that we may use; fewer where starting them would cost more than it saves."""
    return max(1, min(len(os.sched_getaffinity(0)), num_examples // EXAMPLES_PER_PROCESS))


def map_unordered(
    work: Work[Task, Result], tasks: Iterable[Task], num_processes: int, on_step: Callable[[Task, int], None]
) -> Generator[Result]:
    """Results in the order in which they are ready. One process: this one. Close the iterator to end the others."""
    if num_processes > 1:
        yield from _map_in_processes(work, iter(tasks), num_processes, on_step)
        return
    for task in tasks:
        yield work(task, lambda count, task=task: on_step(task, count))  # type: ignore[misc]  # mypy: lambda defaults


def _map_in_processes(
    work: Work[Task, Result], tasks: Iterator[Task], num_processes: int, on_step: Callable[[Task, int], None]
) -> Generator[Result]:
    workers = [_start() for _ in range(num_processes)]
    busy: dict[Connection, tuple[_Worker, Task]] = {}
    try:
        pickled = ForkingPickler.dumps(work)
        for worker in workers:  # all are starting by now
            _send(worker, pickled)
            _hand_over(worker, tasks, busy)
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                worker, task = busy[connection]
                message: int | Exception | _Done[Result] = _receive(worker)
                if isinstance(message, int):
                    on_step(task, message)
                elif isinstance(message, Exception):
                    raise message
                else:
                    del busy[connection]
                    _hand_over(worker, tasks, busy)
                    yield message.result
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join()
            worker.connection.close()


def _start() -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    resource_tracker.ensure_running()  # starting it would let SIGINT through again
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()  # Ctrl-C reaches the whole group; we end the others, and while they start they would complain
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    theirs.close()  # so that its death is the end of the pipe
    return _Worker(process, ours)


def _hand_over(worker: _Worker, tasks: Iterator[Task], busy: dict[Connection, tuple[_Worker, Task]]) -> None:
    """Give an idle worker the next task, if there is one."""
    for task in tasks:
        _send(worker, ForkingPickler.dumps(task))
        busy[worker.connection] = (worker, task)
        return


def _send(worker: _Worker, pickled: memoryview) -> None:
    try:
        worker.connection.send_bytes(pickled)
    except (BrokenPipeError, ConnectionResetError):
        raise _died(worker) from None


def _receive(worker: _Worker) -> int | Exception | _Done[Result]:
    try:
        message: int | Exception | _Done[Result] = worker.connection.recv()
    except (EOFError, ConnectionResetError):
        raise _died(worker) from None
    return message


def _died(worker: _Worker) -> ChildProcessError:
    worker.process.join()
    code = worker.process.exitcode
    how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
    return ChildProcessError(f"process {worker.process.pid} {how} in the middle of its work")


def _serve(connection: Connection) -> None:
    """In a process of its own, which SIGINT does not reach: do one task after the other, until the other end of the
    pipe is closed."""
    with suppress(EOFError, OSError):  # whoever started us is gone, perhaps in the middle of a message
        work: Work[object, object] = connection.recv()
        while True:
            task = connection.recv()
            try:
                connection.send(_Done(work(task, connection.send)))
            except (ValueError, OSError) as error:
                connection.send(error)
