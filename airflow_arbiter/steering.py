"""
The one surface by which the outside looks at the server and steers it.

Owns what may be asked of a master from outside, and how a wish that makes no sense is refused. The control
socket, systemd and metrics know this module and :mod:`airflow_arbiter.report`, and nothing else of it.
"""

from __future__ import annotations

from typing import Any

from airflow_arbiter.errors import CommandError
from airflow_arbiter.report import Report


class Steering:
    """
    What may be asked of one master. Call it from its loop only.

    Each command returns at once: what it asks for happens in the turns that follow, and the report tells how
    far that is.

    :param master: the arbiter.
    :ivar control_socket: the path of the control socket, for whoever asks; set by who opens it.
    """

    def __init__(self, master: Any) -> None:
        self._master = master
        self.control_socket = ""

    def report(self) -> Report:
        """Tell how everything stands now."""
        raise CommandError("not yet")

    def restart(self) -> int:
        """
        Replace all workers that exist now, one by one.

        :return: the revision, by which the report tells when it is over.
        :raises CommandError: where replacing is off, or the server is stopping, as are the others.
        """
        raise CommandError("not yet")

    def reload(self) -> int:
        """
        Take in the configuration and the code anew, as SIGHUP does.

        :return: the revision, by which the report tells when it is over.
        """
        raise CommandError("not yet")

    def pause(self) -> None:
        """Replace nobody until :meth:`resume`; what is missing is still spawned."""
        raise CommandError("not yet")

    def resume(self) -> None:
        """
        Go on with replacing.

        :raises CommandError: also when it is not paused.
        """
        raise CommandError("not yet")

    def abort(self) -> None:
        """
        Give up the restarts and reloads that are under way; what they have replaced stays replaced.

        :raises CommandError: also when there are none.
        """
        raise CommandError("not yet")

    def scale(self, workers: int) -> None:
        """
        Want another number of workers, as SIGTTIN and SIGTTOU do one by one.

        :raises CommandError: also for a number that cannot be.
        """
        raise CommandError(f"not yet: {workers}")

    def stop_worker(self, pid: int) -> None:
        """
        Replace one worker.

        :raises CommandError: also when no worker has this pid.
        """
        raise CommandError(f"not yet: {pid}")
