"""
How a master comes to life: for the first time, or in the place of an earlier image of itself.

Owns the order of things until the arbiter's loop runs, and who hears a signal meanwhile: loading the app
takes seconds in which the arbiter has no handlers yet.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.errors import AppImportError

from airflow_arbiter import capture, events, succession
from airflow_arbiter.arbiter import EXIT_SIGNALS, AirflowArbiter
from airflow_arbiter.errors import SettingsError
from airflow_arbiter.handover import Handover


def start(app: Any) -> None:
    """
    Load the app and serve until told to stop.

    :param app: the gunicorn application.
    :raises SystemExit: always in the end; 3 for an app that cannot be loaded.
    :raises SettingsError: for a log that cannot be set up.
    """
    capture.install()
    with _leaving_on_signals() as asked:
        try:
            arbiter = AirflowArbiter(app)
            arbiter.load()
        except SettingsError:
            raise
        except AppImportError as error:
            events.publish("app.load_failed", level="error", error=str(error))
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
        except (Exception, SystemExit):
            # Only loading the app runs foreign code here; whatever it raises, we cannot boot.
            if asked:
                sys.exit(0)
            events.publish_exception("app.load_failed")
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
    if asked:
        sys.exit(0)  # the import of the app has swallowed it
    arbiter.run()


def resume(app: Any, handover: Handover) -> None:
    """
    Go on where the earlier image left, with the app loaded anew.

    Comes with all signals blocked, and lets them through when somebody hears them. Whatever happens here, the
    workers that were handed over are kept: without an app there is nobody new, that is all.

    :raises SystemExit: always in the end.
    """
    capture.install()
    arbiter = AirflowArbiter(app)
    succession.adopt(arbiter, handover)
    with _leaving_on_signals(once=True) as asked:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, EXIT_SIGNALS)
            arbiter.load()
            signal.pthread_sigmask(signal.SIG_BLOCK, EXIT_SIGNALS)
        except BaseException as error:
            # As in a first start, but there is somebody to stay for.
            signal.pthread_sigmask(signal.SIG_BLOCK, EXIT_SIGNALS)
            if not asked:
                events.publish_exception("reload.failed")
                arbiter.load_error = error
    unsupervised_s = round(time.monotonic() - handover.left_at, 3)
    events.publish("reload.resumed", generation=arbiter.generation, unsupervised_s=unsupervised_s)
    if asked:
        arbiter.start()
        arbiter.stop(graceful=asked[0] == signal.SIGTERM)
        arbiter.halt()
    arbiter.run()


@contextlib.contextmanager
def _leaving_on_signals(*, once: bool = False) -> Iterator[list[int]]:
    """
    Raise SystemExit in whatever runs when a signal to end comes; what came is noted.

    :param once: raise only for the first, so that who has caught it is left alone.
    """
    asked: list[int] = []

    def leave(sig: int, _frame: FrameType | None) -> None:
        asked.append(sig)
        if not once or len(asked) == 1:
            raise SystemExit(0)

    # The arbiter sets its own handlers when it starts.
    for sig in EXIT_SIGNALS:
        signal.signal(sig, leave)
    yield asked
