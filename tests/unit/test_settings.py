"""Our settings: names, bounds, messages and the policy that comes out of them."""

from __future__ import annotations

import argparse
import math
import re
from typing import Any

import pytest
from gunicorn.config import Config

from airflow_arbiter import settings
from airflow_arbiter.errors import SettingsError
from airflow_arbiter.pool import RolloutPolicy

NAMES = [
    "worker_refresh_interval",
    "worker_refresh_jitter",
    "worker_refresh_batch_size",
    "worker_boot_timeout",
    "min_ready_seconds",
    "health_check_path",
    "health_check_timeout",
    "termination_grace_period",
    "warmup_path",
    "fork_safety",
    "immortal_preload",
    "memory_merge",
    "reload_on_plugin_change",
    "reload_path",
    "reload_check_interval",
    "worker_max_memory",
    "worker_memory_interval",
    "worker_min_lifetime",
    "log_format",
]
ALLOWED = {
    "worker_refresh_interval": "a number from 0 to 31536000",
    "worker_refresh_jitter": "a number from 0 to 1",
    "worker_refresh_batch_size": "a whole number from 0 to 1000",
    "log_format": "console or json",
    "worker_boot_timeout": "a number above 0, up to 31536000",
    "min_ready_seconds": "a number from 0 to 31536000",
    "health_check_path": "a path that starts with '/', or nothing",
    "health_check_timeout": "a number above 0, up to 31536000",
    "termination_grace_period": "0, or a number from 3 to 31536000",
    "worker_max_memory": "a number of bytes from 0 to 1125899906842624, or such as 512M or 1.5G",
    "worker_memory_interval": "a number above 0, up to 31536000",
    "worker_min_lifetime": "a number from 0 to 31536000",
    "warmup_path": "paths that start with '/'",
    "fork_safety": "warn, strict or off",
    "immortal_preload": "True or False",
    "memory_merge": "True or False",
    "reload_on_plugin_change": "True or False",
    "reload_path": "a list of text",
    "reload_check_interval": "a number above 0, up to 31536000",
}


@pytest.fixture
def cfg() -> Any:
    config = Config()
    config.set("worker_class", settings.WORKER_CLASS)
    return config


def test_ours_are_all() -> None:
    """Each setting of ours is listed, in the order of the documentation, and known to gunicorn."""
    assert [setting.name for setting in settings.OURS] == NAMES
    assert set(NAMES) <= Config().settings.keys()


@pytest.mark.parametrize("setting", settings.OURS, ids=lambda setting: str(setting.name))
def test_each_has_what_the_documentation_shows(setting: Any) -> None:
    """A description that opens with a sentence, a flag of its own name, and our section."""
    assert setting.section == "Airflow arbiter"
    prefix = "--no-" if setting.default is True else "--"  # as gunicorn's --no-sendfile
    assert setting.cli == [prefix + setting.name.replace("_", "-")]
    assert re.match(r"[A-Z][^\n]*[.;]", setting.desc.strip())
    assert setting.short.endswith(".")


def test_help_has_one_section_of_ours(cfg: Any) -> None:
    """All our options stand together in --help."""
    parser: argparse.ArgumentParser = cfg.parser()
    groups = [group for group in parser._action_groups if group.title == "Airflow arbiter"]
    assert [sorted(action.dest for action in group._group_actions) for group in groups] == [sorted(NAMES)]


def test_defaults(cfg: Any) -> None:
    """Nothing is replaced by age unless somebody asks for it."""
    assert {name: cfg.settings[name].get() for name in NAMES} == {
        "worker_refresh_interval": 0.0,
        "worker_refresh_jitter": 0.1,
        "worker_refresh_batch_size": 1,
        "worker_boot_timeout": 120.0,
        "min_ready_seconds": 0.0,
        "health_check_path": None,
        "health_check_timeout": 5.0,
        "termination_grace_period": 0.0,
        "warmup_path": [],
        "fork_safety": "warn",
        "immortal_preload": True,
        "memory_merge": False,
        "worker_max_memory": 0,
        "worker_memory_interval": 10.0,
        "worker_min_lifetime": 60.0,
        "reload_on_plugin_change": False,
        "reload_path": [],
        "reload_check_interval": 10.0,
        "log_format": None,
    }


# -- values
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("worker_refresh_interval", 0, 0.0),
        ("worker_refresh_interval", 43200, 43200.0),
        ("worker_refresh_interval", "43200", 43200.0),
        ("worker_refresh_interval", "1.5", 1.5),
        ("worker_refresh_interval", 31536000, 31536000.0),
        ("worker_refresh_jitter", 0, 0.0),
        ("worker_refresh_jitter", 1, 1.0),
        ("worker_refresh_jitter", "0.25", 0.25),
        ("worker_refresh_batch_size", 0, 0),
        ("worker_refresh_batch_size", "3", 3),
        ("worker_refresh_batch_size", "0x10", 16),
        ("worker_boot_timeout", 0.001, 0.001),
        ("worker_boot_timeout", "600", 600.0),
        ("min_ready_seconds", 0, 0.0),
        ("min_ready_seconds", "2.5", 2.5),
        ("health_check_path", "/health?deep=1", "/health?deep=1"),
        ("health_check_path", "/", "/"),
        ("health_check_path", "", None),
        ("health_check_path", None, None),
        ("health_check_timeout", "0.5", 0.5),
        ("termination_grace_period", "0", 0.0),
        ("termination_grace_period", 3, 3.0),
        ("worker_max_memory", "512M", 512 * 2**20),
        ("worker_max_memory", "1.5g", 3 * 2**29),
        ("worker_max_memory", "64 KiB", 64 * 2**10),
        ("worker_max_memory", "1000", 1000),
        ("worker_max_memory", 4096, 4096),
        ("warmup_path", ["/", "", "/version?full=1"], ["/", "/version?full=1"]),
        ("warmup_path", "/version", ["/version"]),
        ("warmup_path", [""], []),
        ("fork_safety", "strict", "strict"),
        ("log_format", "console", "console"),
        ("log_format", "json", "json"),
        ("log_format", None, None),
    ],
)
def test_good_value(cfg: Any, name: str, value: object, expected: object) -> None:
    """Numbers may come as text, as they do from a command line; nothing means no path."""
    settings.apply(cfg, {name: value}, source="cfg")
    assert (cfg.settings[name].get(), type(cfg.settings[name].get())) == (expected, type(expected))


NO_NUMBERS_AT_ALL = (
    "health_check_path", "log_format", "reload_path", "reload_on_plugin_change", "warmup_path", "fork_safety",
    "immortal_preload", "memory_merge",
)  # fmt: skip
NUMBERS = [name for name in NAMES if name not in NO_NUMBERS_AT_ALL]
NO_NUMBERS: list[object] = [
    None, True, False, "", "many", "1 s", [], {}, (1,), object, -1, "-1", -0.5, math.inf, -math.inf, math.nan,
    "inf", "nan", "1e400",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in NUMBERS for value in NO_NUMBERS),
        ("termination_grace_period", 2.9),
        *((name, 31536001) for name in NUMBERS if name != "worker_max_memory"),
        ("worker_max_memory", 2**50 + 1),
        ("worker_refresh_jitter", 1.01),
        ("worker_refresh_jitter", "2"),
        ("worker_refresh_batch_size", 1.5),
        ("worker_refresh_batch_size", 1.0),
        ("worker_refresh_batch_size", "1.0"),
        ("worker_boot_timeout", 0),
        ("worker_boot_timeout", "0"),
        ("health_check_timeout", 0.0),
        ("health_check_path", "health"),
        ("health_check_path", "http://localhost/health"),
        ("health_check_path", "/santé"),
        ("health_check_path", b"/health"),
        ("health_check_path", 3),
        ("health_check_path", True),
        ("warmup_path", "version"),
        ("warmup_path", ["/", 3]),
        ("fork_safety", "lax"),
        ("fork_safety", None),
        ("fork_safety", True),
        ("log_format", "xml"),
        ("log_format", "JSON"),
        ("log_format", ""),
        ("log_format", 3),
        ("log_format", True),
    ],
)
def test_bad_value(cfg: Any, name: str, value: object) -> None:
    """The message names the source, the option, the value and what is allowed; the old value stays."""
    before = cfg.settings[name].get()
    with pytest.raises(SettingsError) as raised:
        settings.apply(cfg, {name: value}, source="gunicorn.conf.py")
    message = str(raised.value)
    assert message.startswith(f"gunicorn.conf.py: {name} cannot be {value!r} (")
    assert message.endswith(f"); allowed: {ALLOWED[name]}")
    assert cfg.settings[name].get() == before


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("workers", "many", "a whole number from 1 to 1000"),
        ("timeout", None, "a whole number from 0 to 31536000"),
        ("preload_app", 3, "True or False"),
        ("proc_name", 3, "text"),
        ("bind", 3, "a list of text"),
        ("logconfig_dict", "x", "a mapping"),
    ],
)
def test_bad_value_of_gunicorn(cfg: Any, name: str, value: object, allowed: str) -> None:
    """gunicorn's own settings speak the same way."""
    with pytest.raises(SettingsError) as raised:
        settings.apply(cfg, {name: value}, source="cfg")
    message = str(raised.value)
    assert message.startswith(f"cfg: {name} cannot be {value!r} (")
    assert message.endswith(f"; allowed: {allowed}")


def test_settings_error_is_a_value_error() -> None:
    """A caller who knows nothing of us can still catch it."""
    assert issubclass(SettingsError, ValueError)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("worker_refresh_intervall", "did you mean 'worker_refresh_interval'?"),
        ("worker", "did you mean 'workers'?"),
        ("min-ready-seconds", "did you mean 'min_ready_seconds'?"),
        ("qqqq", "allowed: the names of gunicorn's settings and ours"),
    ],
)
def test_unknown_name(cfg: Any, name: str, hint: str) -> None:
    """A wrong name is told with the nearest right one."""
    with pytest.raises(SettingsError) as raised:
        settings.apply(cfg, {name: 1}, source="cfg")
    assert str(raised.value) == f"cfg: unknown option {name!r}; {hint}"


def test_apply_sets_all(cfg: Any) -> None:
    """gunicorn's settings and ours are set by the same way."""
    settings.apply(cfg, {"workers": 3, "min_ready_seconds": 2}, source="cfg")
    assert (cfg.workers, cfg.min_ready_seconds) == (3, 2.0)


# -- the policy
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param(
            {},
            RolloutPolicy(
                surge=1,
                refresh_interval_s=0,
                refresh_jitter=0.1,
                boot_timeout_s=120,
                min_ready_s=0,
                heartbeat_timeout_s=30,
                drain_timeout_s=30,
            ),
            id="defaults",
        ),
        pytest.param(
            {
                "workers": 4,
                "worker_refresh_batch_size": 2,
                "worker_refresh_interval": 43200,
                "worker_refresh_jitter": 0.5,
                "worker_boot_timeout": 60,
                "min_ready_seconds": 3,
                "timeout": 20,
                "graceful_timeout": 10,
            },
            RolloutPolicy(
                surge=2,
                refresh_interval_s=43200,
                refresh_jitter=0.5,
                boot_timeout_s=60,
                min_ready_s=3,
                heartbeat_timeout_s=20,
                drain_timeout_s=10,
            ),
            id="each-in-its-place",
        ),
        pytest.param({"worker_refresh_batch_size": 0}, RolloutPolicy(surge=0), id="surge-0"),
        pytest.param({"timeout": 0}, RolloutPolicy(heartbeat_timeout_s=0), id="timeout-0-is-never"),
    ],
)
def test_policy(cfg: Any, options: dict[str, Any], expected: RolloutPolicy) -> None:
    """The planner is told what the operator wants, each value in its place."""
    settings.apply(cfg, options, source="cfg")
    assert settings.policy(cfg) == expected
