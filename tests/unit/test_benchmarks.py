"""What the benchmarks make of their figures: medians, ratios, prices, phases, pages, the order of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import interpreters
import pytest
from bench import cli, pages
from bench.contestants import COLOURS, LABELS, longest_turn_ms
from bench.goals import GOALS, Goal
from bench.pace import Sample
from bench.plan import KINDS, measures, steps
from bench.record import Record, read
from bench.report import goals, sections
from bench.results import Cases, Results
from bench.ruler import Roll
from bench.serving import phases
from bench.stats import paired_ratio, percentile, price, spread


def results(**cases: dict[str, list[dict[str, Any]]]) -> Results:
    """Results of cases that are named with an underscore for the blank."""
    return Results({name.replace("_", " "): by_server for name, by_server in cases.items()})


ROLLS = results(
    roll_24={
        "ours": [{"seconds": 2.0}, {"seconds": 3.0}, {"seconds": 2.2}],
        "airflow": [{"seconds": 22.0}, {"seconds": None, "note": "not ended"}],
    }
)


# -- sums of figures -----------------------------------------------------------------------------------------


def test_a_spread_names_median_smallest_and_largest() -> None:
    """A single figure stands alone."""
    assert spread([3, 1, 2], "{:.1f}") == "2.0 (1.0 to 3.0)"
    assert spread([2.04, 2.01], "{:.1f}") == "2.0"


@pytest.mark.parametrize(
    ("percent", "expected"),
    [
        pytest.param(50, 50, id="half of them are not above it"),
        pytest.param(99, 99, id="all but one"),
        pytest.param(99.5, 100, id="a rank is rounded up"),
        pytest.param(100, 100, id="the largest"),
        pytest.param(0.1, 1, id="the smallest"),
    ],
)
def test_a_percentile_is_one_of_the_values(percent: float, expected: int) -> None:
    """The nearest rank, whatever the order."""
    assert percentile(list(range(100, 0, -1)), percent) == expected


def test_a_paired_ratio_does_not_feel_a_slower_machine() -> None:
    """Both of a pair are slowed alike."""
    assert paired_ratio([99, 49.5, 9.9], [100, 50, 10]) == pytest.approx(0.99)


def test_the_price_of_one_more_is_the_slope() -> None:
    """What is paid once is not in it."""
    assert price([1, 4, 8], [230, 320, 440]) == pytest.approx(30)


# -- results -------------------------------------------------------------------------------------------------


def test_a_ratio_is_of_the_medians_of_what_was_measured() -> None:
    """A repetition without the figure does not count, and is noted."""
    assert ROLLS.ratio("roll 24", "airflow", "seconds") == pytest.approx(10.0)
    assert ROLLS.notes() == ["roll 24, airflow, repetition 2: not ended"]


def test_figures_taken_in_turns_are_compared_pair_by_pair() -> None:
    """Lists of equal length are pairs, over all repetitions."""
    rates = results(
        rate_1={
            "ours": [{"per_s": [99, 198]}, {"per_s": [990]}],
            "gunicorn": [{"per_s": [100, 200]}, {"per_s": [1000]}],
        }
    )
    assert rates.ratio("rate 1", "ours", "per_s", "gunicorn") == pytest.approx(0.99)


def test_what_was_not_measured_has_no_figure() -> None:
    """Neither a median nor a ratio nor a price."""
    nothing = results()
    assert nothing.median("roll 4", "ours", "seconds") is None
    assert nothing.ratio("roll 4", "ours", "seconds") is None
    assert nothing.price("memory", "ours", "asked_tree_mib") is None


def test_requests_are_counted_before_a_roll_and_during_it() -> None:
    """One belongs to the time when it was due; one that failed has no latency; percentiles have a window."""
    samples = [
        Sample(due_at=9.0, took_s=9.0, outcome="ok"),
        Sample(due_at=10.0, took_s=0.001, outcome="ok"),
        Sample(due_at=12.0, took_s=0.005, outcome="ok"),
        Sample(due_at=12.1, took_s=0.007, outcome="reset"),
        Sample(due_at=19.0, took_s=0.009, outcome="ok"),
    ]
    found = phases(samples, Roll(seconds=9.0, began_at=11.0), began_at=10.0, window_s=5.0)
    assert found == {
        "steady_p50_ms": 1.0, "steady_p99_ms": 1.0, "steady_max_ms": 1.0,
        "steady_requests": 1, "steady_outcomes": {"ok": 1},
        "rolling_p50_ms": 5.0, "rolling_p99_ms": 5.0, "rolling_max_ms": 9.0,
        "rolling_requests": 3, "rolling_outcomes": {"ok": 2, "reset": 1},
    }  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "12:00:00 [info     ] arbiter.stopped  [airflow_arbiter] longest_turn_ms=12.5 uptime_s=3.1",
        '{"uptime_s": 3.1, "longest_turn_ms": 12.5, "event": "arbiter.stopped", "logger": "airflow_arbiter"}',
    ],
)
def test_the_longest_turn_is_read_from_either_form_of_the_log(line: str) -> None:
    """The event tells it when the server ends."""
    assert longest_turn_ms(f"first\n{line}\nlast\n") == 12.5
    assert longest_turn_ms("killed\n") is None


# -- goals and pages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figure", "is_least", "verdict"),
    [
        (0.15, False, "met"),
        (0.151, False, "**not met**"),
        (0.15, True, "met"),
        (0.149, True, "**not met**"),
        (None, False, "not measured"),
    ],
)
def test_a_goal_is_met_up_to_its_limit(figure: float | None, is_least: bool, verdict: str) -> None:
    """The limit itself keeps it; nothing measured is no verdict."""
    goal = Goal(asks="a figure", limit=0.15, figure=lambda _: figure, is_least=is_least)
    assert goal.row(results())[3] == verdict


def test_every_goal_can_be_judged() -> None:
    """Figures of one run are enough for all, and none is judged without them."""
    tree = {"asked_tree_mib": 300, "schema_tree_mib": 300, "first_answer_s": 9.0}
    whole = results(
        memory_4={"ours": [tree], "airflow": [{**tree, "asked_tree_mib": 500}], "uvicorn": [tree]},
        memory_8={"ours": [{"asked_tree_mib": 420, "schema_tree_mib": 460}]},
        rate_1={"ours": [{"per_s": [1000]}], "gunicorn": [{"per_s": [1000]}]},
        roll_24={"ours": [{"seconds": 2.0}], "airflow": [{"seconds": 28.0}]},
        lost_4={"ours": [{"failed": 0, "seconds": 1.0}]},
        held_4={"ours": [{"fewest_listening": 4, "seconds": 14.0}]},
    )
    latency = {"steady_max_ms": 40, "rolling_max_ms": 50, "rolling_outcomes": {"ok": 9}, "seconds": 2.0}
    cases: Cases = {"airflow-latency 4": {"ours": [latency]}}
    verdicts = {goal.asks: goal.row(Results({**whole.cases, **cases}))[3] for goal in GOALS}
    assert [asks for asks, verdict in verdicts.items() if verdict == "**not met**"] == [
        "memory of 4 Airflow workers after requests, of Airflow's gunicorn mode, with the schema",
        "memory of 4 Airflow workers after requests, of Airflow's uvicorn mode",
        "memory of 4 Airflow workers after requests, of Airflow's uvicorn mode, with the schema",
        "each further Airflow worker after requests, with the schema, MiB",
        "slowest request of Airflow while rolling, of the slowest in steady state",
    ]
    assert "not measured" not in verdicts.values()
    assert all("not measured" in line for line in goals(results())[2:])


@pytest.mark.parametrize(
    ("case", "figures"),
    [
        ("lost 4", {"failed": 0, "seconds": None, "note": "no new worker within 30 s"}),
        ("held 4", {"fewest_listening": 4, "seconds": 9.0, "note": "only 0 of 4 workers held a request"}),
        ("airflow-latency 4", {"steady_max_ms": 40, "rolling_max_ms": 4, "seconds": None}),
    ],
)
def test_a_roll_that_was_not_seen_meets_no_goal(case: str, figures: dict[str, Any]) -> None:
    """Nothing was lost in a roll that never came: that is no measurement."""
    verdicts = {goal.row(Results({case: {"ours": [figures]}}))[3] for goal in GOALS}
    assert verdicts == {"not measured"}


def test_a_request_that_failed_while_rolling_was_slow() -> None:
    """However quick the others were."""
    latency = {"steady_max_ms": 40, "rolling_max_ms": 4, "seconds": 2.0}
    found = Results({"airflow-latency 4": {"ours": [{**latency, "rolling_outcomes": {"ok": 9, "reset": 1}}]}})
    (verdict,) = {goal.row(found)[3] for goal in GOALS} - {"not measured"}
    assert verdict == "**not met**"


def test_a_cell_has_median_range_ratio_and_count() -> None:
    """A repetition without the figure is told."""
    ((key, title, table),) = sections(ROLLS)
    assert (key, title) == ("rolls", "Rolls of the tiny app")
    assert table[0] == "|  | airflow_arbiter | Airflow gunicorn mode |"
    assert table[2] == "| roll 24 idle workers, s | 2.20 (2.00 to 3.00) (n=3) | 22.00, x10 (n=1 of 2) |"


def test_lost_requests_are_summed_by_kind() -> None:
    """Over all repetitions."""
    lost = results(
        lost_4={"airflow": [{"outcomes": {"ok": 990, "reset": 2}}, {"outcomes": {"ok": 5, "reset": 3}}]}
    )
    ((_, _, table),) = sections(lost)
    assert "| requests failed in a roll of 4 workers under full load | 5 of 1,000: 5 reset (n=2) |" in table


def test_the_file_is_whole_after_each_figure(tmp_path: Path) -> None:
    """A run that is cut short leaves what it had found, and pages can be made of it."""
    record = Record(tmp_path / "new" / "results.json", facts={"processors": "2"}, command="python benchmarks")
    record.add("roll 4", {"ours": {"seconds": 0.3}})
    record.spent("roll 4", 61.0)
    record.add("roll 4", {"ours": {"seconds": 0.5}})
    data = read(tmp_path / "new" / "results.json")
    assert data["cases"] == {"roll 4": {"ours": [{"seconds": 0.3}, {"seconds": 0.5}]}}
    text = pages.write(data, None)
    assert "| roll 4 idle workers, s | 0.40 (0.30 to 0.50) (n=2) |" in text
    assert "- minutes that the run took: 1" in text


# -- the order of a run --------------------------------------------------------------------------------------


def test_repetitions_alternate_and_the_dear_ones_are_fewer() -> None:
    """Each repetition begins with another server; who is measured once is in the first."""
    rolls = [measure for measure in measures(quick=False) if measure.name == "roll"]
    order = [
        step.kinds[0].name
        for step in steps(rolls, ["ours", "gunicorn", "granian"], 2)
        if step.case == "roll 4"
    ]
    assert order == ["ours", "gunicorn", "granian", "gunicorn", "ours"]


def test_some_measure_all_servers_in_one_step() -> None:
    """The windows of a rate, and the idle masters."""
    rates = [measure for measure in measures(quick=True) if measure.name == "rate"]
    assert [[kind.name for kind in step.kinds] for step in steps(rates, ["ours", "uvicorn"], 2)] == [
        ["ours", "uvicorn"],
        ["uvicorn", "ours"],
    ]


@pytest.mark.parametrize(
    ("arguments", "names", "servers"),
    [
        pytest.param(["--only", "roll", "--only", "ours"], {"roll"}, {"ours"}, id="one of each"),
        pytest.param(
            ["--only", "memory", "--skip", "uvicorn"],
            {"memory"},
            {"ours", "ours-merging", "ours-no-schema", "airflow", "gunicorn", "granian"},
            id="only a measurement leaves the servers",
        ),
    ],
)
def test_names_choose_measurements_and_servers(
    arguments: list[str], names: set[str], servers: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind of name restricts its own kind."""
    for kind in KINDS:
        monkeypatch.setattr(kind, "is_installed", lambda: True)
    chosen, kinds = cli.chosen(cli.parse(arguments))
    assert ({measure.name for measure in chosen}, set(kinds)) == (names, servers)


def test_the_command_that_is_told_names_no_file(tmp_path: Path) -> None:
    """It is committed with the figures."""
    options = cli.parse(["--quick", "--skip", "granian", "--json", str(tmp_path / "x.json")])
    assert cli.command(options) == "python benchmarks --repetitions 1 --skip granian --quick"
    assert str(tmp_path) not in json.dumps(cli.command(options))


def test_each_server_has_a_label_and_a_colour() -> None:
    """Otherwise the last step of a long run fails."""
    assert set(COLOURS) == set(LABELS) == {kind.name for kind in KINDS}


# -- interpreters --------------------------------------------------------------------------------------------


def test_the_page_of_interpreters_compares_each_with_its_own_others() -> None:
    """Ours as a part of Airflow's modes on the same Python; what was not measured is a dash."""
    machine = dict.fromkeys(interpreters.SAME_FOR_ALL, "one")

    def run(python: str, ours: float, theirs: float) -> dict[str, Any]:
        trees = {"ours": [{"asked_tree_mib": ours}], "airflow": [{"asked_tree_mib": theirs}]}
        return {"machine": {**machine, "Python": python}, "cases": {"memory 4": trees}}

    page = interpreters.page([run("3.11.7", 360, 430), run("3.12.1", 287, 421)])
    assert "| 3.11.7 | 360 (0.84, -) | - | - | - |\n| 3.12.1 | 287 (0.68, -) | - | - | - |" in page
    assert "- model: one" in page
