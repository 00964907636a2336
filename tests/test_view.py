"""The saved view of a sweep: what is in it, and how MLflow's UI opens it in headless Chromium."""

import base64
import json
import re
import zlib
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
from browser import NO_ASSISTANT, find_link, serve
from conftest import mfgd as run_mfgd
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

import mfgd
from mfgd import mlflow_view
from mfgd.mlflow_view import ERROR, OTHER, RESULT, SPECTRUM

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.xdist_group("view"),
]
SWEEP = (
    "--multirun",
    "problem=synthetic",
    "problem.n=12",
    "problem.m=11",
    "problem.noise=0.1",
    "lr_unit=sigma1",
    "steps=20",
    "record.points=8",
    "tracking.figures=0",
)
FEW = ("rank=2,5,10", "lr=0.1,0.3,3", "loss=squared,huber", "init=uniform,normal,spectral")
MANY = ("rank=1,2", "lr=0.03,0.1,0.3,1,3", "init=uniform,normal", "seed=range(50)")
"""More runs than the 100 that MLflow's UI loads."""
FAULT = "Error loading shared view state"
"""How MLflow begins to say that it cannot show a view."""
MISSING = ("users/current",)
"""What MLflow's own UI asks for, and its server without log-in does not have."""
UNPLACED = re.compile("attribute .*(NaN|A negative value is not valid)")
"""What Chromium says of parallel coordinates that are drawn before their card has a height."""
DRAWN = "curves => curves.filter(curve => curve.getAttribute('d')?.includes('L')).length"
"""How many curves have a line."""
NUMBERED = """
parts => parts.map(part => [Number(part.closest("[row-index]").getAttribute("row-index")),
                            part.innerText.trim()])
"""
"""The number of its row, and the text, of each part of a table."""
PATIENCE = 120_000
"""Milliseconds until a chart is drawn, on a machine that has much else to do."""


def make_runs(**columns):
    """A table of six runs over two ranks, one of them lost."""
    table = {
        "run_id": [f"{i:032x}" for i in range(6)],
        "params.rank": ["2", "2", "2", "10", "10", "10"],
        "params.loss": ["squared", "huber"] * 3,
        "metrics.rank": [2.0, 2.0, 2.0, 10.0, 10.0, 10.0],
        "metrics.loss": [1.0, 2.0, 3.0, 4.0, 5.0, np.nan],
        "metrics.relative_error": [0.1, 0.2, 0.3, 0.4, 0.5, np.nan],
        "metrics.final_relative_error": [0.1, 0.2, 0.3, 0.4, 0.5, np.nan],
        "metrics.steps_run": [20.0] * 6,
        "metrics.never": [np.nan] * 6,
        "tags.outcome": ["budget"] * 5 + ["diverged"],
    }
    return pandas.DataFrame(table | columns)


def decode(value):
    """The name of a view, and its layout."""
    view = json.loads(value)
    kind, packed = view["state"].split(";")
    assert kind == "deflate"
    return view["name"], json.loads(zlib.decompress(base64.b64decode(packed)))


def list_shown(charts):
    """The metrics that have a card."""
    return {chart["metricKey"] for chart in charts if "metricKey" in chart}


@pytest.mark.parametrize("images", [False, True])
def test_a_view_shows_every_metric_and_names_no_other(images):
    runs = make_runs()
    tag, value = mlflow_view.view_tag(runs, "parent", "my sweep", images)
    assert tag == "mlflow.sharedViewState.parent"
    assert len(value) <= 5000
    name, state = decode(value)
    assert name == "my sweep"
    assert state["searchFilter"] == "tags.`mlflow.parentRunId` = 'parent'"
    charts = state["compareRunCharts"]
    known = {column for column in runs if column.startswith("metrics.") and runs[column].any()}
    assert {f"metrics.{metric}" for metric in list_shown(charts)} == known
    named = [*state["selectedColumns"], state["orderByKey"], *state["columnOrder"][1:-2]]
    assert {column.replace("`", "") for column in named} <= set(runs)
    # A key that a measure is called like is not the measure.
    assert state["selectedColumns"][:2] == ["metrics.`rank`", "params.`loss`"]
    sections = [section["uuid"] for section in state["compareRunSections"]]
    assert {chart["metricSectionId"] for chart in charts} == set(sections)
    assert len({chart["uuid"] for chart in charts}) == len(charts)
    assert sum(chart["type"] == "IMAGE" for chart in charts) == 2 * images


@pytest.mark.parametrize("count", [1, 2])
def test_quartiles_of_few_replicates_share_the_chart_of_their_median(count):
    error = "metrics.relative_error"
    more = {f"{error}.q25": 0.1, f"{error}.q75": 0.3, "metrics.success_rate": [0.5, 0.6] * 3}
    runs = pandas.concat([make_runs(**more)] * count, ignore_index=True)
    _, state = decode(mlflow_view.view_tag(runs, "parent", "my sweep", False)[1])
    charts = state["compareRunCharts"]
    (curve,) = [chart for chart in charts if chart.get("metricKey") == "relative_error"]
    quartiles = ["relative_error.q25", "relative_error.q75"] if count == 1 else []
    assert curve["selectedMetricKeys"] == ["relative_error", *quartiles]
    assert not list_shown(charts).intersection(["relative_error.q25", "relative_error.q75"])
    (settings,) = [chart for chart in charts if chart["type"] == "PARALLEL"]
    assert settings["selectedMetrics"] == ["steps_run", "success_rate"]


def test_a_view_of_too_many_metrics_leaves_out_the_last():
    more = {f"metrics.{name}": range(6) for name in map(str, np.random.default_rng(0).random(500))}
    _, value = mlflow_view.view_tag(make_runs(**more), "parent", "my sweep", False)
    assert len(value) <= 5000
    _, state = decode(value)
    assert "relative_error" in list_shown(state["compareRunCharts"])


def test_a_view_that_mlflow_refuses_leaves_the_plain_link(here, monkeypatch):
    def refuse(*_):
        raise MlflowException("no such tag", INVALID_PARAMETER_VALUE)

    monkeypatch.setattr(MlflowClient, "set_experiment_tag", refuse)
    done = here(*SWEEP, "rank=1,2", "workers=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("/#/experiments/1/runs")


@pytest.fixture(scope="module")
def served(browser, tmp_path_factory):
    """Two sweeps, their links, and the address of a server that shows them."""
    folder = tmp_path_factory.mktemp("served")
    links, tables = {}, {}
    for name, swept in {"few": FEW, "many": MANY}.items():
        # So few points that the runs of the larger sweep have a curve of what matters only.
        options = (f"tracking.experiment={name}", "tracking.points=40000")
        done = run_mfgd(*SWEEP, *swept, *options, cwd=folder)
        assert done.returncode == 0, done.stderr
        links[name] = find_link(done.stdout)
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        tables[name] = mfgd.load_runs(experiment=name, uri=uri).dropna(subset="parent")
    with serve(folder) as address:
        yield SimpleNamespace(address=address, links=links, tables=tables)


@contextmanager
def opened(browser, address):
    """An address of MLflow's UI; nothing may go wrong there that does not always go wrong."""
    context = browser.new_context(viewport={"width": 1400, "height": 1900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.add_init_script(NO_ASSISTANT)
    said = []
    page.on("pageerror", lambda error: said.append(str(error)))

    def hear(message):
        known = message.location["url"].endswith(MISSING) or UNPLACED.search(message.text)
        if message.type == "error" and not known:
            said.append(message.text)

    page.on("console", hear)
    page.goto(address)
    yield page
    assert said == []
    assert page.locator("[transform*=NaN], [d*=NaN], [height*=NaN]").count() == 0
    context.close()


def read_names(page, count):
    """The names of the first rows."""
    return read_rows(page, count, "a[href*='/runs/']")


def read_column(page, column, count):
    """A column of the first rows, as it is shown."""
    return read_rows(page, count, f"[col-id='{column}']")


def read_rows(page, count, part):
    page.locator(f"[row-index='{count - 1}'] {part}").first.wait_for(state="attached")
    found = page.locator(f"[row-index] {part}").evaluate_all(NUMBERED)
    texts = dict(reversed(found))  # the first of a row
    return [texts[i] for i in range(count)]


def check_order(page, runs, measure, keys):
    """The first rows are the best runs, named by their values; equal ones in any order."""
    names = read_names(page, 12)
    by_name = runs.set_index(runs[[f"params.{key}" for key in keys]].agg(" ".join, axis=1))
    values = by_name.loc[names, measure]
    np.testing.assert_array_equal(values, runs[measure].sort_values().head(12))


def find_card(page, title):
    cards = page.get_by_test_id("experiment-view-compare-runs-card")
    card = cards.filter(has_text=re.compile(f"^{re.escape(title)}"))
    card.first.scroll_into_view_if_needed()
    return card.first


def count_curves(page):
    """How many curves the charts of the excess and of the error have."""
    counts = []
    for title in ("excess_loss", "relative_error"):
        curves = find_card(page, title).locator("path.js-line")
        curves.first.wait_for(state="attached")
        counts.append(curves.evaluate_all(DRAWN))
    return counts


def check_results(page, result):
    """Waits until the charts of the result are drawn."""
    find_card(page, "Parallel Coordinates").locator("canvas").first.wait_for()
    contour = find_card(page, f"lr vs. rank vs. {result}")
    contour.locator(".contourlayer path").first.wait_for(state="attached")
    scatter = find_card(page, f"lr vs. {result}")
    scatter.locator(".scatterlayer path.point").first.wait_for(state="attached")


@pytest.mark.slow
def test_the_view_of_54_runs(served, browser):
    runs = served.tables["few"]
    with opened(browser, f"{served.address}/{served.links['few']}") as page:
        page.get_by_text("54 matching runs").wait_for()
        view = page.get_by_test_id("saved-views-trigger").inner_text()
        assert re.fullmatch(r"sweep [-\d]+ [:\d]+", view.strip())
        assert page.get_by_text(FAULT).count() == 0
        # The Huber loss has no known optimum, so the runs are compared by their error.
        check_order(page, runs, "metrics.final_relative_error", ("rank", "lr", "loss", "init"))
        assert min(count_curves(page)) > len(runs) / 4
        check_results(page, "final_relative_error")
        sections = page.get_by_test_id("experiment-view-compare-runs-section-header")
        titles = [text.splitlines()[0] for text in sections.all_inner_texts()]
        assert titles == [ERROR, RESULT, SPECTRUM, OTHER]


@pytest.mark.slow
def test_the_view_of_1000_runs(served, browser):
    runs = served.tables["many"]
    with opened(browser, f"{served.address}/{served.links['many']}") as page:
        page.get_by_text(re.compile("10[01] matching runs")).wait_for()  # those that are loaded
        check_order(page, runs, "metrics.excess_loss", ("rank", "seed", "lr", "init"))
        assert min(count_curves(page)) > 50
        check_results(page, "excess_loss")


@pytest.mark.slow
def test_the_table_of_54_runs(served, browser):
    runs = served.tables["few"]
    link = served.links["few"].replace("=CHART", "=TABLE")
    with opened(browser, f"{served.address}/{link}") as page:
        page.get_by_text("54 matching runs").wait_for()
        titles = page.locator(".ag-header-cell[col-id]").all_inner_texts()
        shown = ["rank", "lr", "loss", "init", "outcome", "excess_loss", "final_relative_error"]
        assert titles[3:11] == [*shown, "steps_run"]
        best = runs.sort_values("metrics.final_relative_error").head(1).squeeze()
        (first,) = read_names(page, 1)
        assert first == " ".join(best[f"params.{key}"] for key in shown[:4])
        assert read_column(page, "params.`loss`", 1) == [best["params.loss"]]
        names = read_names(page, len(runs))
        lost = (runs["tags.outcome"] == "diverged").sum()
        assert [name.startswith("× ") for name in names] == [False] * (54 - lost) + [True] * lost
        page.locator(".ag-header-cell[col-id='metrics.`rank`']").click()
        page.locator("[row-index='0'] [col-id='metrics.`rank`']", has_text="10").wait_for()
        ranks = list(map(int, read_column(page, "metrics.`rank`", len(runs))))
        assert ranks == sorted(runs["params.rank"].astype(int), reverse=True)


@pytest.mark.slow
def test_an_unknown_view_is_said_to_be_unknown(served, browser):
    link = re.sub("ShareKey=[0-9a-f]+", "ShareKey=unknown", served.links["few"])
    with opened(browser, f"{served.address}/{link}") as page:
        page.get_by_text(f"{FAULT}: share key").wait_for()
        page.wait_for_url(re.compile("/experiments/1(/|$)"))


@pytest.mark.slow
def test_the_page_of_a_sweep(served, browser):
    runs = served.tables["few"]
    address = f"{served.address}/#/experiments/1/runs/{runs['parent'].iloc[0]}"
    with opened(browser, address) as page:
        link = page.get_by_role("link", name="charts of this sweep")
        link.wait_for()
        assert link.get_attribute("href") == served.links["few"]
        assert page.get_by_text(f"mfgd {' '.join(SWEEP)}").count() > 0
        assert page.get_by_text("median final relative error").count() == 1
        with page.expect_popup() as popup:
            page.get_by_role("link", name="compare.html").click()
        frame = popup.value.frame_locator("iframe")
        frame.locator("html[data-ready]").wait_for(state="attached")
        settings = runs[runs["tags.outcome"] != "diverged"]
        count = settings.groupby(["params.rank", "params.lr", "params.loss", "params.init"]).ngroups
        assert frame.locator("#every .mark-symbol path").count() == count


def test_a_sweep_whose_runs_all_raise_has_a_view(here, tmp_path):
    (tmp_path / "broken.py").write_text("def problem():\n    raise ArithmeticError('no matrix')\n")
    done = here("--multirun", "problem._target_=broken.problem", "seed=1,2", "workers=1")
    assert done.returncode == 1
    assert "2 of 2 runs FAILED" in done.stdout
    assert "viewStateShareKey" in done.stdout
