"""The plots, as SVG that comes out the same from the same figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from bench.contestants import COLOURS, LABELS
from bench.results import Results

STYLE = {
    "svg.hashsalt": "airflow_arbiter",  # else the ids of clips are random
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.alpha": 0.3,
    "legend.frameon": False,
}
WIDTH_IN, HEIGHT_IN = 7.2, 3.4
CROWD = 12
"""More bars in a panel have their figures written upwards."""

Panel = Callable[[Any, Results], bool]
"""Draws into axes; False if there is nothing to draw."""


def draw(results: Results, folder: Path) -> dict[str, str]:
    """
    Draw what there are figures for.

    :param folder: that exists.
    :return: the names of the files, and what they show.
    """
    drawn = {}
    with mpl.rc_context(STYLE):
        for name, (words, panels) in PLOTS.items():
            picture = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
            FigureCanvasSVG(picture)
            axes = picture.subplots(1, len(panels), squeeze=False)[0]
            has_figures = [panel(each, results) for panel, each in zip(panels, axes, strict=True)]
            if not all(has_figures):
                continue
            handles, labels = axes[0].get_legend_handles_labels()
            picture.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))
            picture.savefig(folder / f"{name}.svg", metadata={"Date": None})
            drawn[f"{name}.svg"] = words
    return drawn


def bars(cases: dict[str, str], key: str, title: str, *, is_log: bool = False, form: str = "{:.3g}") -> Panel:
    """
    Make a panel of groups of bars, one bar for each server.

    :param cases: what stands under each group, and its case.
    """

    def panel(axes: Any, results: Results) -> bool:
        groups = {words: case for words, case in cases.items() if case in results.names()}
        return _bars(
            axes,
            {
                name: [results.median(case, name, key) for case in groups.values()]
                for name in LABELS
                if any(results.median(case, name, key) is not None for case in groups.values())
            },
            list(groups),
            title,
            is_log=is_log,
            form=form,
        )

    return panel


def figures(
    case: str, keys: dict[str, str], title: str, *, is_log: bool = False, form: str = "{:.3g}"
) -> Panel:
    """
    Make a panel of groups of bars, one group for each figure of one case.

    :param keys: what stands under each group, and its figure.
    """

    def panel(axes: Any, results: Results) -> bool:
        values = {
            name: [results.median(case, name, key) for key in keys.values()]
            for name in LABELS
            if results.figures(case, name)
        }
        kept = {name: medians for name, medians in values.items() if any(m is not None for m in medians)}
        return _bars(axes, kept, list(keys), title, is_log=is_log, form=form)

    return panel


def lost(axes: Any, results: Results) -> bool:
    """Requests that failed, of a hundred thousand."""
    share = {}
    for name in LABELS:
        counts = results.total("lost 4", name, "outcomes")
        if counts:
            share[name] = [(sum(counts.values()) - counts["ok"]) / sum(counts.values()) * 100_000]
    return _bars(axes, share, [""], "requests lost in a roll,\nof 100,000", form="{:.1f}")


def memory(axes: Any, results: Results) -> bool:
    """Memory by the number of workers, idle, after requests, and after those for the schema."""
    sizes = results.sizes("memory")
    for name in LABELS:
        for key, line in (("schema_tree_mib", "-"), ("asked_tree_mib", "--"), ("idle_tree_mib", ":")):
            points = [(n, m) for n in sizes if (m := results.median(f"memory {n}", name, key)) is not None]
            if points:
                label = LABELS[name] if line == "-" else None
                axes.plot(*zip(*points, strict=True), line, marker="o", color=COLOURS[name], label=label)
    axes.set_xticks(sizes)
    axes.set_xlabel("workers (dotted: idle, dashed: after requests,\nfull: and the schema)")
    axes.set_ylim(bottom=0)
    axes.set_title("memory of all processes, PSS, MiB", fontsize=9)
    return len(sizes) > 1


def _bars(
    axes: Any, values: dict[str, list[Any]], groups: list[str], title: str, *, is_log: bool = False, form: str
) -> bool:
    width = 0.8 / max(1, len(values))
    is_crowded = len(values) * len(groups) > CROWD
    axes.margins(y=0.15)
    for number, (name, heights) in enumerate(values.items()):
        places = [group + (number - (len(values) - 1) / 2) * width for group in range(len(groups))]
        known = [(place, height) for place, height in zip(places, heights, strict=True) if height is not None]
        drawn = axes.bar(*zip(*known, strict=True), width * 0.92, color=COLOURS[name], label=LABELS[name])
        labels = [form.format(height) for _, height in known]
        axes.bar_label(drawn, labels, fontsize=6, padding=2, rotation=90 if is_crowded else 0)
    axes.set_xticks(range(len(groups)), groups)
    axes.tick_params(axis="x", length=0)
    if is_log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(title, fontsize=9)
    return bool(values and groups)


_LATENCIES = {
    "steady\np50": "steady_p50_ms",
    "steady\np99": "steady_p99_ms",
    "steady\nslowest": "steady_max_ms",
    "rolling\np50": "rolling_p50_ms",
    "rolling\np99": "rolling_p99_ms",
    "rolling\nslowest": "rolling_max_ms",
}

PLOTS: dict[str, tuple[str, tuple[Panel, ...]]] = {
    "rolls-time": ("Seconds to roll 4, 24 and 64 idle workers", (
        bars({"4 workers": "roll 4", "24": "roll 24", "64": "roll 64"}, "seconds",
             "seconds to roll idle workers (logarithmic)", is_log=True),
    )),
    "rolls-lost": ("Requests lost in a roll, and the fewest workers that listen in one", (
        lost,
        bars({"": "held 4"}, "fewest_listening",
             "fewest of 4 workers listening,\neach old one holding a request", form="{:.0f}"),
    )),
    "latency-tiny": ("Latency of the tiny app, steady and rolling", (
        figures("latency 4", _LATENCIES, "latency of the tiny app, ms (logarithmic)", is_log=True),
    )),
    "worker-rate": ("Requests per second of one worker, and processor time of an idle master", (
        bars({"": "rate 1"}, "per_s", "requests per second, one worker", form="{:,.0f}"),
        bars({"": "idle 4"}, "percent", "idle master of 4 workers,\n% of one core", form="{:.3f}"),
    )),
    "memory-workers": ("Memory of the real Airflow by the number of workers", (
        memory,
        figures("memory 4", {"idle": "idle_worker_private_mib", "after\nrequests": "asked_worker_private_mib",
                "and the\nschema": "schema_worker_private_mib"},
                "private memory of one of 4 workers, MiB", form="{:.0f}"),
    )),
    "start-time": ("Time to the first answer of the real Airflow, and latency, steady and rolling", (
        figures("memory 4", {"first\nanswer, s": "first_answer_s", "processor\ntime, s": "first_answer_cpu_s",
                "4 workers\nserve, s": "full_set_s"}, "start of the real Airflow", form="{:.1f}"),
        figures("airflow-latency 4", _LATENCIES, "latency of the real Airflow, ms", is_log=True,
                form="{:.0f}"),
    )),
}  # fmt: skip
