"""The two ends of a worker process: the parent's handle, and the child's loop that serves a session.

Children come from a fork server that has imported torch and transformers once. A child ends by itself when its parent
is gone, also after `kill -9`. What goes wrong in a child comes back as a status and one line; its full output lies in
the model's `log.txt`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import traceback
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any

from baselines.config import Unsupported
from harness.processes import die_with_parent
from harness.records import Status


@dataclass
class Outcome:
    """How a task ended: its `value`, or a status other than ok and a one-line message."""

    value: Any = None
    status: Status = "ok"
    message: str = ""


def server_context() -> ForkServerContext:
    """The multiprocessing context whose server has imported what every child needs.

    The server starts here, so whoever asks early has it import while other things are done.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["harness.preloaded"])
    forkserver.ensure_running()
    return context


class Worker:
    """The parent's handle of one model's process."""

    def __init__(self, context: ForkServerContext, job: Any, threads: int) -> None:
        self.name: str = job.name
        self.connection, child = context.Pipe()
        self.process = context.Process(target=serve, args=(child, job, threads), name=job.name, daemon=True)
        self.process.start()
        child.close()

    def ask(self, task: str, *arguments: Any) -> None:
        """Give the process a task; its answer comes through `answer`."""
        with contextlib.suppress(OSError):  # if the process is gone, `answer` says how
            self.connection.send((task, arguments))

    def answer(self) -> Outcome | dict[str, Any]:
        """The next message, waiting for it: progress (a dict) or the outcome of the task."""
        try:
            message: Outcome | dict[str, Any] = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode or 0
            reason = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            return Outcome(status="oom" if code == -9 else "crashed", message=f"process {reason}")
        return message

    def call(self, task: str, *arguments: Any) -> Outcome:
        """Ask and wait for the outcome."""
        self.ask(task, *arguments)
        return self.outcome()

    def outcome(self) -> Outcome:
        """Wait for the outcome of the task, passing over progress."""
        while not isinstance(message := self.answer(), Outcome):
            pass
        return message

    def close(self) -> None:
        """End the process: it leaves by itself when the connection closes, and is made to if it does not."""
        self.connection.close()
        self.process.join(timeout=5.0)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()


def serve(connection: Connection, job: Any, threads: int) -> None:
    """The child: answer tasks until the parent closes the connection or dies."""
    die_with_parent()
    job.folder.mkdir(parents=True, exist_ok=True)
    with (job.folder / "log.txt").open("a", buffering=1) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    import torch

    from harness.session import FloorSession, ModelSession

    torch.set_num_threads(threads)
    session: Any = None
    while True:
        try:
            task, arguments = connection.recv()
        except EOFError:
            return
        try:
            if session is None:
                session = (FloorSession if job.family is None else ModelSession)(job, connection.send)
            connection.send(Outcome(getattr(session, task)(*arguments)))
        except Exception as error:
            traceback.print_exc()
            sys.stderr.flush()
            connection.send(Outcome(status=status_of(error), message=one_line(error)))


def status_of(error: Exception) -> Status:
    """The row's status for an exception: unsupported, oom, nan or failed."""
    import torch

    if isinstance(error, Unsupported):
        return "unsupported"
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error):
        return "oom"
    return "nan" if isinstance(error, ArithmeticError) else "failed"


def one_line(error: Exception) -> str:
    """Type and first line of an exception."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
