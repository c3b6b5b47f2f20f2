"""
What a master leaves to itself when it replaces its own image: workers, sockets, books.

Owns the form of the message between the two images, which may be of different versions of this package: plain
values by name, where the newer side has a default for what the older one does not know. The message lies in a
memory file that survives the exec.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from airflow_arbiter.errors import IntegrationError

RESUME = Path(__file__).with_name("resume.py")
"""The program of the new image."""


@dataclass(slots=True, kw_only=True)
class Handover:
    """
    The message.

    :param app: the application's class and arguments, pickled.
    :param main_path: the caller's program, where ``app`` refers to something in it.
    :param argv: the command line as the program sees it, and as the system does.
    :param path: where modules are looked for.
    :param cwd: where the server was started.
    :param reason: why the image is replaced.
    :param left_at: when the old image took its last turn, in seconds of the monotonic clock.
    :param generation: the generation that the new image opens.
    :param configured: the number of workers as the old configuration has it; ``target`` may differ.
    :param fixed: settings that only a restart can change.
    :param listeners: descriptors of listening sockets.
    :param notify: descriptors of the pipe that workers wake the master through.
    :param control: the file of the control socket, see :class:`airflow_arbiter.meeting.SocketFile`.
    :param control_fd: its descriptor, where there is one.
    :param workers: one mapping for each living worker.
    :param state: what the planner remembers, see :class:`airflow_arbiter.pool.RolloutState`.
    :param tally: what is counted, see :class:`airflow_arbiter.tally.Tally`.
    :param retry_s: pause before the next try, should the new image find no app.
    :param warmup_s: what the warm-up took in the preflight; 0 where it did not end by itself.
    :param is_first: whether the old image has bound and forked nothing yet, so that there is nobody to keep.
    :param is_cold: whether there is to be no warm-up, because an earlier one could not be undone.
    :param wanted: why another reload is to follow, if one is.
    :param title: the master's, for the process list.
    :param graceful_timeout_s: what workers get that are asked to leave.
    :param boot_timeout_s: what reading the configuration gets.
    :param owns_socket_files: whether the files of Unix sockets are ours to remove.
    :param known_troubles: the names of what was wrong with the app all along.
    :param metrics_told: counters as they were last sent to collectors of metrics, by name.
    :param kept: what the application keeps beyond its arguments, see :meth:`AirflowGunicornApp.keep`.
    """

    app: str = ""
    main_path: str = ""
    argv: list[str] = field(default_factory=list)
    orig_argv: list[str] = field(default_factory=list)
    path: list[str] = field(default_factory=list)
    cwd: str = ""
    reason: str = ""
    left_at: float = 0.0
    generation: int = 1
    worker_age: int = 0
    target: int = 1
    configured: int = 1
    fixed: dict[str, Any] = field(default_factory=dict)
    listeners: list[int] = field(default_factory=list)
    notify: list[int] = field(default_factory=list)
    control: dict[str, Any] | None = None
    control_fd: int = -1
    workers: list[dict[str, Any]] = field(default_factory=list)
    master_pid: int = 0
    reexec_pid: int = 0
    is_systemd: bool = False
    stats: dict[str, Any] = field(default_factory=dict)
    started_at: float = 0.0
    known_troubles: list[str] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    tally: dict[str, Any] = field(default_factory=dict)
    retry_s: float = 1.0
    warmup_s: float = 0.0
    is_first: bool = False
    is_cold: bool = False
    wanted: str = ""
    title: str = ""
    graceful_timeout_s: float = 30.0
    boot_timeout_s: float = 120.0
    owns_socket_files: bool = False
    metrics_told: dict[str, int] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)

    def write(self) -> int:
        """Write it to a memory file, and return its descriptor, at the beginning."""
        fd = os.memfd_create("airflow-arbiter-handover")
        data = json.dumps(asdict(self)).encode()
        while data:
            data = data[os.write(fd, data) :]
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    @classmethod
    def read(cls, fd: int) -> Handover:
        """Read it, and close its file."""
        with os.fdopen(fd, "rb") as file:
            values = json.loads(file.read())
        known = {item.name for item in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})

    def descriptors(self) -> tuple[int, ...]:
        """Tell all descriptors that are handed over."""
        of_workers = (worker[name] for worker in self.workers for name in ("status_fd", "tmp_fd"))
        control = () if self.control is None else (self.control_fd,)
        return (*self.listeners, *self.notify, *control, *of_workers)

    def make_app(self) -> Any:
        """
        Make the application anew.

        :raises Exception: whatever its configuration raises.
        """
        sys.argv[:] = self.argv
        if self.main_path:
            _load_main(self.main_path)
        cls, args, kwargs = pickle.loads(base64.b64decode(self.app))  # noqa: S301  # our own, out of memory
        app = cls(*args, **kwargs)
        app.take_up(self.kept)
        return app


_loading: list[str] = []
"""The caller's program, while it is loaded once more."""


def is_loading_main() -> bool:
    """Whether the caller's program is being loaded once more."""
    return bool(_loading)


def _load_main(path: str) -> None:
    """Load the caller's program as multiprocessing does: what it guards does not run again."""
    from multiprocessing import spawn

    _loading.append(path)
    try:
        spawn.import_main_path(path)
    finally:
        _loading.remove(path)


def carry(cls: type[Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, str]:
    """
    Write down how an application was made, so that another process can make it anew.

    :return: the pickled class and arguments, and the program that they refer to, if they do.
    :raises IntegrationError: for what cannot be carried, such as a hook that is a lambda.
    """
    try:
        pickled = pickle.dumps((cls, args, dict(kwargs)))
    except Exception as error:
        # Pickling runs what it pickles, which may raise anything.
        raise IntegrationError(
            f"the options given to {cls.__name__}() cannot be carried over to a new process ({error}); name "
            "hooks by functions of a module, or in gunicorn.conf.py"
        ) from error
    main = getattr(sys.modules["__main__"], "__file__", None)
    refers_to_main = b"__main__" in pickled
    if refers_to_main and main is None:
        raise IntegrationError("the options refer to a program that is no file")
    return base64.b64encode(pickled).decode(), str(Path(main).resolve()) if refers_to_main and main else ""


def keep_over_exec(*fds: int) -> None:
    """Let descriptors survive an exec, and the standard streams with them, where they are open."""
    for fd in fds:
        os.set_inheritable(fd, True)  # noqa: FBT003  # has no names for its parameters
    for fd in (0, 1, 2):
        # python-daemon opens /dev/null as standard input so that an exec closes it; whatever is opened next
        # would take its number, and be the standard input of the app's child processes.
        with contextlib.suppress(OSError):
            os.set_inheritable(fd, True)  # noqa: FBT003  # as above


def close_on_exec(*fds: int) -> None:
    """Let descriptors be closed by an exec, as they are from the beginning; one may be closed already."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.set_inheritable(fd, False)  # noqa: FBT003  # as above


def command(fd: int, *options: str) -> list[str]:
    """
    Tell the command line of the new image.

    :param fd: where the handover lies.
    """
    # As multiprocessing does: there is no public way to start another interpreter with this one's options.
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001
    return [sys.executable, *flags, str(RESUME), str(fd), *options]
