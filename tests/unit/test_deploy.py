"""The files in deploy/: their forms are what their readers take, and their numbers agree with each other."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from check_jsonschema.builtin_schemas import get_builtin_schema
from gunicorn.config import Config
from harness import deployed
from harness.deployed import AIRFLOWS, Deployed

from airflow_arbiter import checks, limits, settings
from airflow_arbiter.provider_info import get_provider_info

CHART = {
    "apiServer": {
        *("enabled", "replicas", "revisionHistoryLimit", "labels", "command", "args", "allowPodLogReading"),
        *("env", "hpa", "serviceAccount", "service", "podDisruptionBudget", "strategy", "securityContexts"),
        *("containerLifecycleHooks", "waitForMigrations", "extraContainers", "extraInitContainers"),
        *("extraVolumes", "extraVolumeMounts", "nodeSelector", "affinity", "tolerations"),
        *("topologySpreadConstraints", "priorityClassName", "hostAliases", "annotations", "podAnnotations"),
        *("networkPolicy", "resources", "configMapAnnotations", "apiServerConfig"),
        *("apiServerConfigConfigMapName", "livenessProbe", "readinessProbe", "startupProbe"),
    },
    "probe": {"initialDelaySeconds", "timeoutSeconds", "failureThreshold", "periodSeconds", "scheme"},
}
"""Keys of the official chart. Source: apache/airflow 1.18, chart/values.yaml and values.schema.json."""

CHART_PROBES = "/api/v2/monitor/health"
"""
What all of its probes ask.

Source: apache/airflow, chart/templates/api-server/api-server-deployment.yaml, at 024658b and at b958433.
"""

each = pytest.mark.parametrize("file", [deployed.manifest, deployed.values, deployed.compose])


@pytest.mark.parametrize("document", deployed.documents(deployed.MANIFEST), ids=lambda it: str(it["kind"]))
def test_manifest_is_what_kubernetes_takes(document: dict[str, Any]) -> None:
    """Each object passes the strict schema of the newest Kubernetes that is known here."""
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_compose_is_what_compose_takes() -> None:
    """The file passes the schema of the Compose specification."""
    (file,) = deployed.documents(deployed.COMPOSE)
    jsonschema.validate(file, get_builtin_schema("vendor.compose-spec"))


def test_values_are_what_the_chart_takes() -> None:
    """Each key is one that the chart has, and what it puts into the pod passes the schema of a pod."""
    (values,) = deployed.documents(deployed.VALUES)
    server = values["apiServer"]
    assert set(values) == {"images", "airflowVersion", "apiServer"}
    assert set(server) <= CHART["apiServer"]
    probes = {name: server[name] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert all(set(probe) <= CHART["probe"] for probe in probes.values())
    path = {"httpGet": {"path": CHART_PROBES, "port": 8080}}
    pod = deployed.documents(deployed.MANIFEST)[0]
    pod["spec"]["strategy"] = server["strategy"]
    pod["spec"]["template"]["spec"] = {
        "securityContext": server["securityContexts"]["pod"],
        "containers": [
            {
                "name": "api-server",
                "image": "{repository}:{tag}".format(**values["images"]["airflow"]),
                "securityContext": server["securityContexts"]["container"],
                "lifecycle": server["containerLifecycleHooks"],
                "volumeMounts": server["extraVolumeMounts"],
                **{name: {**probe, **path} for name, probe in probes.items()},
                **{key: server[key] for key in ("command", "args", "env", "resources")},
            }
        ],
        "volumes": server["extraVolumes"],
    }
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


@each
def test_options_exist(file: Callable[[], Deployed]) -> None:
    """Each option of the section [api] is Airflow's or ours."""
    ours = set(get_provider_info()["config"]["api"]["options"])
    assert set(file().options) <= AIRFLOWS | ours
    assert {"server_type", "workers", "termination_grace_period"} <= set(file().options)


@each
def test_settings_fit_each_other(file: Callable[[], Deployed]) -> None:
    """Nothing is refused, lowered or ignored."""
    cfg = Config()
    settings.apply(
        cfg, {"worker_class": settings.WORKER_CLASS, "control_socket_disable": True}, source="test"
    )
    settings.apply(cfg, file().settings, source="test")
    checks.check(cfg)
    assert checks.corrections(cfg).events == ()


@each
def test_there_is_time_to_drain(file: Callable[[], Deployed]) -> None:
    """The platform's grace period holds preStop, the drain and the end of the server, and we know of it."""
    server = file()
    known_s = int(server.options["termination_grace_period"])
    drain_s = int(server.settings["graceful_timeout"])
    assert known_s <= server.grace_s - server.pre_stop_s
    assert drain_s + limits.STOP_MARGIN_S <= known_s


@each
def test_the_master_is_first(file: Callable[[], Deployed]) -> None:
    """Nobody starts the server anew that still boots, or because of a worker that the master replaces."""
    server = file()
    assert server.startup_s > int(server.options["worker_boot_timeout"])
    assert server.liveness_s > int(server.options["worker_timeout"])


@each
def test_the_master_is_process_1(file: Callable[[], Deployed]) -> None:
    """No shell and no other init between the platform and the master."""
    assert file().command == ["airflow", "api-server"]


def test_probes_ask_what_is_served() -> None:
    """Each probe has the port of the container and a path of the API server; liveness not the database."""
    (container,) = deployed.documents(deployed.MANIFEST)[0]["spec"]["template"]["spec"]["containers"]
    (port,) = container["ports"]
    assert str(port["containerPort"]) == deployed.manifest().options["port"]
    asked = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
    assert {probe["port"] for probe in asked.values()} == {port["name"]}
    assert {kind: probe["path"] for kind, probe in asked.items()} == {
        "startup": "/api/v2/version",
        "readiness": "/api/v2/monitor/health",
        "liveness": "/api/v2/version",
    }
    (_, service, _) = deployed.documents(deployed.MANIFEST)
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]


def test_the_charts_liveness_outlasts_a_database() -> None:
    """It asks the database, so it is far more patient than the manifest's; the page has a patch."""
    page = (deployed.DEPLOY.parent / "docs" / "kubernetes.md").read_text()
    assert f"all three probes ask `{CHART_PROBES}`" in page
    assert f"makes liveness wait for {deployed.values().liveness_s} s" in page
    assert deployed.values().liveness_s >= 4 * deployed.manifest().liveness_s
    (patch,) = (json.loads(text) for text in re.findall(r"```json\n(.*?)```", page, re.DOTALL))
    (container,) = deployed.documents(deployed.MANIFEST)[0]["spec"]["template"]["spec"]["containers"]
    folder = "/spec/template/spec/containers/0/livenessProbe/"
    assert {step["path"].removeprefix(folder): step["value"] for step in patch} == {
        "httpGet/path": container["livenessProbe"]["httpGet"]["path"],
        "failureThreshold": container["livenessProbe"]["failureThreshold"],
    }


def test_replicas_share_their_keys() -> None:
    """What every replica must have alike comes from a Secret."""
    assert {
        "AIRFLOW__CORE__FERNET_KEY",
        "AIRFLOW__API_AUTH__JWT_SECRET",
        "AIRFLOW__API__SECRET_KEY",
    } < deployed.manifest().secrets


def test_objects_mean_the_same_pods() -> None:
    """Deployment, Service and PodDisruptionBudget select the labels that the pods have."""
    deployment, service, budget = deployed.documents(deployed.MANIFEST)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    assert budget["spec"]["selector"]["matchLabels"] == labels


def test_a_pod_comes_before_one_goes() -> None:
    """A rolling update keeps the capacity, and so does whoever empties a node, as far as one pod."""
    deployment, _, budget = deployed.documents(deployed.MANIFEST)
    (values,) = deployed.documents(deployed.VALUES)
    for spec in (deployment["spec"], values["apiServer"]):
        assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
        assert spec["replicas"] > 1
    assert budget["spec"]["maxUnavailable"] == 1
    assert values["apiServer"]["podDisruptionBudget"] == {"enabled": True, "config": {"maxUnavailable": 1}}


@each
def test_there_is_memory_at_worst(file: Callable[[], Deployed]) -> None:
    """The limit holds what docs/kubernetes.md adds up: everybody at the limit, one more, a preflight."""
    page = (deployed.DEPLOY.parent / "docs" / "kubernetes.md").read_text()
    rows = dict(re.findall(r"^\| ([^|]+?) \| \**(\d+)\** \|$", page, re.MULTILINE))
    parts = {text.split()[0]: int(mib) for text, mib in rows.items()}
    server = file()
    workers = int(server.options["workers"])
    largest_mib = limits.SIZE(server.options["worker_max_memory"]) // 2**20
    assert parts["private"] == workers * largest_mib
    assert parts["one"] == int(server.options.get("worker_refresh_batch_size", 1)) * largest_mib
    assert parts["what"] + parts["private"] + parts["one"] + parts["the"] == parts["**together,"]
    assert parts["**together,"] <= parts["`resources.limits.memory`"] == server.memory_mib


@each
def test_the_page_has_the_numbers(file: Callable[[], Deployed]) -> None:
    """The table of docs/kubernetes.md about the end of a pod says what the files say."""
    page = (deployed.DEPLOY.parent / "docs" / "kubernetes.md").read_text()
    column = [deployed.manifest, deployed.values, deployed.compose].index(file)
    table = page.split("### The end of a pod")[1].split("### Probes")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| ")][1:]
    said = [int(row[column + 1].strip().removesuffix(" s") or 0) for row in rows]
    server = file()
    assert said == [
        server.grace_s,
        server.pre_stop_s,
        int(server.options["termination_grace_period"]),
        int(server.settings["graceful_timeout"]),
        limits.STOP_MARGIN_S,
    ]
