"""The exceptions that a person must act on. Trouble at run time is state and events, not an exception."""

from __future__ import annotations


class ArbiterError(Exception):
    """
    Base class of what this package raises.
    """


class SettingsError(ArbiterError, ValueError):
    """
    An option is unknown, or has a value that it cannot have.

    The message names the option, the value, where it came from and what is allowed.
    """


class ForkSafetyError(ArbiterError):
    """
    The app, while it was loaded, has made what no child process can have.

    The message names each thing, and what made it.
    """


class IntegrationError(ArbiterError):
    """
    This machine, gunicorn or Airflow is not one that we can work with.

    The message says what is supported.
    """


class CommandError(ArbiterError):
    """
    A running server cannot do what it was asked to.

    The message says why, in one line.
    """
