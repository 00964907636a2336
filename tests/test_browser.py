"""The comparison page in headless Chromium, offline; skipped where there is none."""

import re
from contextlib import contextmanager
from urllib.parse import urlsplit

import numpy as np
import pandas
import pytest

from mfgd.effects import Effect
from mfgd.page import write_page

pytestmark = [pytest.mark.filterwarnings("ignore::ResourceWarning"), pytest.mark.slow]
HOSTILE = "</script><img src=http://example.com/x onerror=alert(1)>"
LIMIT = 1_500_000
"""Bytes of a page of 5,000 runs."""


def make_runs(count):
    """Runs over three inits, ranks and rates, of which the largest rate diverges mostly, and their
    curves."""
    rng = np.random.default_rng(0)
    steps = np.unique(np.append(0, np.geomspace(1, 1000, 34).round())).astype(int)
    lines, curves = [], []
    for i in range(count):
        init = ("uniform", "normal", HOSTILE)[i % 3]
        rank, lr = (2, 5, 10)[i // 3 % 3], (1e-4, 4e-4, 1e-3)[i // 9 % 3]
        lost = lr == 1e-3 and init != "normal"
        run_id = rng.bytes(16).hex()
        excess = 10 * np.exp(-rng.uniform(0.005, 0.05) * steps) + rng.uniform(1e-9, 1e-7)
        last = 8 if lost else int(rng.integers(20, len(steps)))
        error = np.sqrt((1 + excess) / rank)
        trajectory = {"step": steps, "excess_loss": excess, "relative_error": error}
        curves.append(pandas.DataFrame({"run_id": run_id, **trajectory})[: last + 1])
        outcome = "budget"
        if lost:
            outcome = "diverged"
        elif excess[last] < 1e-3:
            outcome = "converged"
        lines.append(
            {
                "run_id": run_id,
                "status": "FINISHED",
                "parent": "parent",
                "params.rank": str(rank),
                "params.lr": str(lr),
                "params.init": init,
                "params.seed": str(i // 27),
                "metrics.excess_loss": np.nan if lost else excess[last],
                "metrics.final_relative_error": np.nan if lost else error[last],
                "metrics.steps_run": float(steps[last]),
                "metrics.lr_absolute": lr,
                "metrics.lr_limit": 4.56e-4,
                "tags.outcome": outcome,
                "tags.oracle.eckart_young": "deviates" if lost else "agrees",
            }
        )
    return pandas.DataFrame(lines), pandas.concat(curves)


EFFECT = Effect("init", "rank", "5", "uniform", HOSTILE, 0.5, 0.25, 0.75, 12, 1, 5, 18)


@contextmanager
def opened(browser, file):
    """The file's page, offline, when it is ready; nothing may be asked of a network or go wrong."""
    context = browser.new_context(viewport={"width": 1000, "height": 900}, offline=True)
    page = context.new_page()
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(file.as_uri())
    yield page
    schemes = {urlsplit(url).scheme for url in asked}
    assert schemes == {"file"}
    assert not said
    context.close()


def wait_until_ready(frame):
    """The milliseconds until all was drawn."""
    frame.wait_for_selector("html[data-ready]", timeout=60_000)
    return int(frame.locator("html").get_attribute("data-ready"))


EFFECTS = (
    EFFECT,
    EFFECT._replace(ratio=1.5, low=1.00001, high=2.0),  # 1 in four digits
    EFFECT._replace(ratio=np.inf, low=2.0, high=np.inf),
    EFFECT._replace(low=np.nan, high=np.nan, n=0),
)


def written(folder, count, effects=EFFECTS):
    runs, curves = make_runs(count)
    file = folder / "compare.html"
    write_page(
        file,
        runs,
        curves,
        [effect._asdict() for effect in effects],
        f"sweep {HOSTILE}",
        "subtitle & <b>",
    )
    return file, runs


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return written(tmp_path_factory.mktemp("page"), 54)


def select_cell(frame, number):
    cell = frame.locator("#phase .mark-rect path").nth(number)
    cell.evaluate("cell => cell.scrollIntoView({block: 'center'})")
    cell.click(position={"x": 4, "y": 4})


def read_table(frame):
    """The table of the selection as texts."""
    head = [text.rstrip("\u00a0▲▼") for text in frame.locator("#table thead th").all_inner_texts()]
    lines = [line.split("\t") for line in frame.locator("#table tbody tr").all_inner_texts()]
    return pandas.DataFrame(lines, columns=head)


def test_marks_are_those_of_the_runs(small, browser):
    file, runs = small
    settings = runs.groupby(["params.rank", "params.lr", "params.init"])
    lost = settings["metrics.excess_loss"].count() == 0
    known = runs["metrics.excess_loss"].count()
    with opened(browser, file) as page:
        wait_until_ready(page)
        assert page.locator("h1").inner_text() == f"sweep {HOSTILE}"
        assert page.locator("#winners .mark-symbol path").count() == (~lost).sum()
        assert page.locator("#winners .mark-text text").filter(has_text="×").count() == lost.sum()
        cells = page.locator("#phase .mark-text text").all_text_contents()
        assert cells.count("n = 2") == settings.ngroups
        assert cells.count("× 100 %") == lost.sum()
        assert page.locator("#every .mark-symbol path").count() == known
        told = page.locator("#effects td").all_inner_texts()
        assert told[:4] == ["init", "rank = 5", "uniform", HOSTILE]
        assert told[4:10] == ["0.5", "0.25 to 0.75", "12", "1", "5", "18"]
        assert page.locator("#effects .sure").all_inner_texts() == ["0.5", "∞"]
        assert page.locator("img").count() == 0


def test_a_click_on_a_cell_selects_its_runs(small, browser):
    file, runs = small
    with opened(browser, file) as page:
        wait_until_ready(page)
        select_cell(page, 3)
        said = page.locator("#selected").inner_text()
        chosen = runs
        for key in ("lr", "rank", "init"):
            value = re.search(rf"\b{key} = (.*?)(, (lr|rank|init) = |$)", said).group(1)
            column = chosen[f"params.{key}"]
            kept = column == value if key == "init" else column.astype(float) == float(value)
            chosen = chosen[kept]
        assert said.startswith(f"{len(chosen)} of {len(runs)} runs selected: ")
        table = read_table(page)
        expected = chosen.sort_values("metrics.excess_loss")
        assert table["run id"].tolist() == expected["run_id"].tolist()
        shown = table["excess over the optimum"].replace("∞", "nan").astype(float)
        known = expected["metrics.excess_loss"].to_numpy()
        np.testing.assert_allclose(shown, known, rtol=5e-3)
        select_cell(page, 3)
        assert page.locator("#selected").inner_text() == "54 of 54 runs selected"


def test_legend_filters_and_clear_ends_it(small, browser):
    file, runs = small
    with opened(browser, file) as page:
        wait_until_ready(page)
        page.get_by_role("button", name="normal").click()
        chosen = runs[runs["params.init"] == "normal"]
        assert set(read_table(page)["run id"]) == set(chosen["run_id"])
        known = chosen["metrics.excess_loss"].count()
        assert page.locator("#every .mark-symbol path").count() == known
        page.locator("#clear").click()
        assert len(read_table(page)) == len(runs)


def test_titles_sort_the_table(small, browser):
    file, runs = small
    with opened(browser, file) as page:
        wait_until_ready(page)
        for ascending in (True, False):
            page.locator("#table th button", has_text="steps").first.click()
            shown = read_table(page)["steps"].astype(float)
            expected = runs["metrics.steps_run"].sort_values(ascending=ascending)
            np.testing.assert_array_equal(shown, expected)


def test_hover_says_which_run(small, browser):
    file, runs = small
    with opened(browser, file) as page:
        wait_until_ready(page)
        page.locator("#every .mark-symbol path").last.hover(force=True)
        said = page.locator("#tip").inner_text()
        (run,) = [run for run in runs.to_dict("records") if run["run_id"] in said]
        assert f"rank = {run['params.rank']}\n" in said
        assert f"init = {run['params.init']}\n" in said
        assert f"outcome: {run['tags.outcome']}" in said
        assert "eckart_young" in said


def test_choices_redraw_the_charts(small, browser):
    file, runs = small
    with opened(browser, file) as page:
        wait_until_ready(page)
        for name in ("colour", "facet"):
            page.locator(f"#{name}").select_option("")
        page.locator("#measure").select_option("metrics.final_relative_error")
        page.locator("#x").select_option("rank")
        dots = page.locator("#winners .mark-symbol path")
        dots.first.hover()
        error = runs["metrics.final_relative_error"].fillna(np.inf)
        medians = error.groupby(runs["params.rank"].astype(int)).median()
        assert dots.count() == len(medians)
        said = page.locator("#tip").inner_text()
        shown = float(re.search(r"median relative error: (.*)", said).group(1))
        assert shown == pytest.approx(medians.iloc[0], rel=1e-3)


def test_works_in_a_sandbox(small, browser, tmp_path):
    file, runs = small
    outer = tmp_path / "outer.html"
    style = "width: 800px; height: 900px"
    outer.write_text(f'<iframe sandbox="allow-scripts" style="{style}" src="{file.as_uri()}">')
    with opened(browser, outer) as page:
        frame = page.frames[1]
        wait_until_ready(frame)
        select_cell(frame, 0)
        assert re.match(rf"\d+ of {len(runs)} runs", frame.locator("#selected").inner_text())
        width = frame.evaluate("document.documentElement.scrollWidth")
        assert width <= 800


def test_page_of_5000_runs(browser, tmp_path):
    file, runs = written(tmp_path, 5000)
    assert file.stat().st_size <= LIMIT
    with opened(browser, file) as page:
        print(f"{file.stat().st_size} bytes, ready in {wait_until_ready(page)} ms")
        assert page.locator("#selected").inner_text() == "5000 of 5000 runs selected"
        page.get_by_role("button", name="normal").click()
        count = (runs["params.init"] == "normal").sum()
        assert page.locator("#selected").inner_text().startswith(f"{count} of 5000 runs")
        page.locator("#more").click()
        assert page.locator("#table tbody tr").count() == 600


def test_no_pairs_no_curves_and_nothing_but_lost_runs(browser, tmp_path):
    runs, curves = make_runs(54)
    lost = runs[runs["tags.outcome"] == "diverged"].drop(columns="metrics.excess_loss")
    file = tmp_path / "compare.html"
    write_page(file, lost, curves.iloc[:0], [], "lost", "")
    with opened(browser, file) as page:
        wait_until_ready(page)
        assert "no pairs" in page.locator("#effects-note").inner_text()
        assert page.locator("#winners .mark-symbol path").count() == 0
        assert page.locator("#every .mark-text text").filter(has_text="×").count() == len(lost)
