"""
How a master comes to life: for the first time, or in the place of an earlier image of itself.

Owns the order of things until the arbiter's loop runs, and who hears a signal meanwhile: loading the app
takes seconds in which the arbiter has no handlers yet.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Sequence
from types import FrameType
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.errors import AppImportError

from airflow_arbiter import capture, events, passing, preload, succession
from airflow_arbiter.alarm import alarm
from airflow_arbiter.arbiter import EXIT_SIGNALS, AirflowArbiter
from airflow_arbiter.errors import ArbiterError, ForkSafetyError, SettingsError
from airflow_arbiter.handover import Handover
from airflow_arbiter.taint import TaintedError

LATER_SIGNALS = frozenset(Arbiter.SIGNALS) - EXIT_SIGNALS - {signal.SIGCHLD}
"""What only an arbiter's loop can answer; it waits until there is one."""

_USAGE_ERROR = 2


def start(app: Any, *, again: Handover | None = None) -> None:
    """
    Load the app and serve until told to stop.

    :param app: the gunicorn application.
    :param again: what an earlier image has left that had to undo its warm-up.
    :raises SystemExit: always in the end; 3 for an app that cannot be loaded.
    :raises SettingsError: for a log that cannot be set up.
    """
    _open_standard_streams()
    capture.install()
    try:
        _start(app, again)
    except SystemExit as error:
        passing.leave(error.code)
        raise


def start_anew(message: Handover) -> None:
    """
    Start once more, in a fresh image, without the warm-up that could not be undone otherwise.

    :raises SystemExit: always in the end.
    """
    try:
        start(message.make_app(), again=message)
    except ArbiterError as error:
        sys.stderr.write(f"{message.title}: error: {error}\n")  # it could be read a moment ago
        sys.exit(_USAGE_ERROR)


def _start(app: Any, again: Handover | None) -> None:
    ears = _Ears()
    try:
        arbiter = AirflowArbiter(app)
        if again is not None:
            succession.go_on(arbiter, again)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())  # what has come since the exec is heard here
        arbiter.reloader.settle_watch()
        try:
            arbiter.load(warmup_limit_s=preload.LIMIT_S if again is None else 0.0)
        except TaintedError:
            _begin_anew(arbiter, succession.first(arbiter), ears)
    except SettingsError:
        raise
    except (AppImportError, ForkSafetyError) as error:
        events.publish("app.load_failed", level="error", error=str(error))
        sys.exit(Arbiter.WORKER_BOOT_ERROR)
    except (Exception, SystemExit):
        # Only loading the app runs foreign code here; whatever it raises, we cannot boot.
        if ears.asked:
            sys.exit(0)
        events.publish_exception("app.load_failed")
        sys.exit(Arbiter.WORKER_BOOT_ERROR)
    if ears.asked:
        sys.exit(0)  # the import of the app has swallowed it
    arbiter.run()


def resume(arbiter: AirflowArbiter, handover: Handover, noted: Sequence[int] = ()) -> None:
    """
    Go on where the earlier image left, with the app loaded anew.

    Comes with all signals blocked, and lets them through when somebody hears them. Whatever happens here, the
    workers that were handed over are kept: without an app there is nobody new, that is all.

    :param arbiter: the new image's, with nobody in it yet.
    :param noted: signals that have come already, for its loop.
    :raises SystemExit: always in the end.
    """
    capture.install()
    for sig in noted:
        arbiter.SIG_QUEUE.put_nowait(sig)
    try:
        _resume(arbiter, handover)
    except SystemExit as error:
        passing.leave(error.code)
        raise


def _resume(arbiter: AirflowArbiter, handover: Handover) -> None:
    succession.adopt(arbiter, handover)
    arbiter.reloader.retry_s = handover.retry_s
    arbiter.show_title("loading")
    ears = _Ears(LATER_SIGNALS, note=arbiter.SIG_QUEUE.put_nowait)
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # what has come meanwhile is heard here
        arbiter.reloader.settle_watch()
        try:
            # It has gone well a moment ago, within the same time. Nobody looks after the workers meanwhile,
            # so that an import that hangs now must end.
            with alarm(arbiter.cfg.worker_boot_timeout):
                arbiter.load(warmup_limit_s=preload.limit_after(handover.warmup_s))
        except TaintedError:
            _begin_anew(arbiter, succession.once_more(arbiter, handover), ears)
    except BaseException as error:
        # As in a first start, but there is somebody to stay for. First of all, because a second signal would
        # leave this frame with nobody to end the workers:
        ears.is_loading = False
        if not ears.asked:
            events.publish_exception("reload.failed")
            arbiter.load_error = error
            arbiter.reloader.fail(f"{type(error).__name__}: {error}")
    ears.is_loading = False
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    unsupervised_s = round(time.monotonic() - handover.left_at, 3)
    if handover.wanted:
        arbiter.reloader.carry_on(handover.wanted)
    if arbiter.load_error is None:
        events.publish("reload.resumed", generation=arbiter.generation, unsupervised_s=unsupervised_s)
    if ears.asked:
        arbiter.start()
        arbiter.stop(graceful=ears.asked[0] == signal.SIGTERM)
        arbiter.halt()
    arbiter.run()


def _begin_anew(arbiter: AirflowArbiter, message: Handover, ears: _Ears) -> None:
    """
    Become a fresh image without a warm-up. Returns only if a signal to end has come.

    :raises OSError: when the system cannot do it.
    """
    ears.is_loading = False
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        if not ears.asked:
            while not arbiter.SIG_QUEUE.empty():
                os.kill(os.getpid(), arbiter.SIG_QUEUE.get_nowait())  # it stays pending over the exec
            succession.begin_anew(arbiter, message)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)


def _open_standard_streams() -> None:
    """
    Open the null device in the place of standard streams that are closed.

    Otherwise a pipe or a worker's memory file gets their number, and with it whatever anybody prints.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # noqa: FBT003  # has no names for them


class _Ears:
    """
    Hears signals to end before the arbiter has handlers of its own, and ends whatever is being loaded.

    Nothing is blocked meanwhile: programs that the app starts while it is loaded would inherit that for life.

    :param later: signals that are only noted.
    :param note: takes each of them, in order. Sent once more, for the loop, they would be pending together:
        the kernel keeps one of a kind, and delivers them by number.
    :ivar asked: the signals to end that came.
    :ivar is_loading: whether one raises SystemExit in whatever runs; if not, it is only noted.
    """

    def __init__(
        self, later: Collection[int] = (), *, note: Callable[[int], object] = lambda _sig: None
    ) -> None:
        self.asked: list[int] = []
        self.is_loading = True
        for sig in EXIT_SIGNALS:
            signal.signal(sig, self._hear)
        for other in later:
            signal.signal(other, lambda sig, _frame: note(sig))

    def _hear(self, sig: int, _frame: FrameType | None) -> None:
        self.asked.append(sig)
        if self.is_loading:
            raise SystemExit(0)
