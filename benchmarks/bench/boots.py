"""What a start of the real Airflow costs, and what its workers hold afterwards."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from bench.airflow import ENDPOINTS, SCHEMA_ENDPOINTS, AirflowServer
from bench.memory import held

REQUESTS = 200


def measure_memory(kind: type[AirflowServer], workers: int) -> dict[str, Any]:
    """Start, look, ask, look again, ask for the OpenAPI schema too, and look once more."""
    with kind(workers) as server:
        found: dict[str, Any] = {
            "first_answer_s": round(server.first_answer_s, 3),
            "first_answer_cpu_s": round(server.first_answer_cpu_s, 2),
            "full_set_s": round(server.full_set_s, 3),
        }
        time.sleep(server.settle_s)
        held_mib = {"idle": held(server.pid, server.old)}
        statuses: Counter[str] = Counter()
        for phase, endpoints in (("asked", ENDPOINTS), ("schema", SCHEMA_ENDPOINTS)):
            statuses += server.ask(REQUESTS, endpoints)
            time.sleep(server.settle_s)
            held_mib[phase] = held(server.pid, server.old)
    bad = {status: count for status, count in statuses.items() if status != "200"}
    if bad:
        found["note"] = f"not answered with 200: {bad}"
    sizes = {f"{phase}_{name}": size for phase, all_ in held_mib.items() for name, size in all_.items()}
    return {**found, **sizes}
