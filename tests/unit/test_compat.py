"""What we support, checked before anything of gunicorn is imported."""

from __future__ import annotations

import pytest

from airflow_arbiter import compat


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        pytest.param("25.2.0", True, id="the-first"),
        pytest.param("25.2", True, id="the-first,-in-short"),
        pytest.param("25.1.99", False, id="just-before-the-first"),
        pytest.param("24.1.1", False, id="a-year-before"),
        pytest.param("26.0.0", True, id="between"),
        pytest.param("27.0.1", True, id="today"),
        pytest.param("27.99.99", True, id="the-last"),
        pytest.param("28.0.0", False, id="just-after-the-last"),
        pytest.param("28.0.0rc1", False, id="a-candidate-of-the-next"),
        pytest.param("27.1.0.dev3+local", True, id="a-development-version"),
        pytest.param("100.0", False, id="numbers,-not-letters,-are-compared"),
        pytest.param("25.10.0", True, id="numbers,-not-digits,-are-compared"),
        pytest.param("none", False, id="none"),
        pytest.param("", False, id="empty"),
        pytest.param("27", False, id="half-a-version"),
    ],
)
def test_range_of_gunicorn(installed: str, expected: bool) -> None:
    """Versions from 25.2 to below 28 are known, and nothing else."""
    assert compat.is_supported_gunicorn(installed) is expected


def test_this_machine_is_supported() -> None:
    """Where the tests run, the server runs."""
    compat.check_platform()
