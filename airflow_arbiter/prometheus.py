"""
A report as Prometheus' text, for who scrapes it.

For clients of a server only: the master never imports this module, nor the package that it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_arbiter.errors import IntegrationError
from airflow_arbiter.metrics import METRICS
from airflow_arbiter.report import Report
from airflow_arbiter.restoring import restore

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.core import Metric


def render(report: Report | Mapping[str, object]) -> str:
    """
    Write a report as Prometheus' text.

    :param report: it, or what a client has got of it out of JSON.
    :raises IntegrationError: where prometheus-client is not installed, or a server of another version speaks.
    """
    try:
        from prometheus_client import CollectorRegistry, generate_latest
    except ModuleNotFoundError as error:
        raise IntegrationError(
            "prometheus-client is not installed; install it (pip install 'airflow-arbiter[prometheus]')"
        ) from error
    if not isinstance(report, Report):
        try:
            report = restore(Report, report)
        except TypeError as error:
            raise IntegrationError(
                "the report is of a server of another version, and not understood"
            ) from error
    registry = CollectorRegistry()
    registry.register(_Collector(report))
    return generate_latest(registry).decode()


class _Collector:
    """What Prometheus' client asks for values."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        families = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
        for metric in METRICS:
            family = families[metric.kind](metric.prometheus, metric.about, labels=metric.labels)
            for labels, value in metric.read(self._report):
                if value is not None:
                    family.add_metric(labels, value)
            yield family
