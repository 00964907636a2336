import itertools

import numpy as np
import pandas
import pytest
from matplotlib.text import Text

from mfgd import phase, spread, sweep_curves, sweep_plots
from mfgd.types import Refused

DIVERGED = 1.797e308
"""As MLflow keeps infinity."""


def sweep(lost=0.2, **keys) -> pandas.DataFrame:
    """A table of every combination of the values of the keys, with drawn errors and outcomes."""
    rows = np.array(list(itertools.product(*keys.values())), dtype=object)
    names = [f"params.{key.replace('__', '.')}" for key in keys]
    runs = pandas.DataFrame(rows.astype(str), columns=names)
    rng = np.random.default_rng(1)
    is_lost = rng.random(len(runs)) < lost
    runs["run_id"] = [f"{i:032x}" for i in range(len(runs))]
    runs["params.problem"], runs["params.steps"] = "digits", "1000"
    runs["tags.outcome"] = np.where(is_lost, "diverged", "budget")
    error = 10 ** rng.uniform(-6, 0, len(runs))
    runs["metrics.final_relative_error"] = np.where(is_lost, DIVERGED, error)
    return runs


def known(runs: pandas.DataFrame) -> pandas.Series:
    return runs["metrics.final_relative_error"].replace(DIVERGED, np.inf)


INITS, RATES, SEEDS = ["normal", "spectral", "uniform"], ["0.001", "0.01", "0.1"], range(5)


@pytest.fixture
def seeds() -> pandas.DataFrame:
    return sweep(rank=[2, 10], lr=RATES, init=INITS, seed=SEEDS)


def panels_of(figure) -> list:
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def note_of(figure) -> str:
    return figure.get_supxlabel().replace("\n", " ")


def test_the_runs_of_a_search_share_a_panel():
    """Each of its values is drawn: a panel for each would hold one dot."""
    rng = np.random.default_rng(0)
    runs = sweep(lost=0, seed=[0], trial=range(40)).drop(columns=["params.seed", "params.trial"])
    runs["params.lr"] = (10 ** rng.uniform(-3, 0, 40)).astype(str)
    runs["params.init.scale"] = rng.uniform(0, 1, 40).astype(str)
    runs["params.init"] = rng.choice(INITS, 40)
    figure = sweep_plots.overview(runs)
    (axes,) = panels_of(figure)
    drawn = np.sort(np.unique(np.concatenate([line.get_xdata() for line in axes.lines])))
    # Dots of two colours stand a little apart.
    np.testing.assert_allclose(drawn, np.sort(runs["params.lr"].astype(float)), rtol=1e-3)
    assert note_of(figure) == "one run a dot, of any init.scale"


def test_dots_are_medians_and_bars_are_quartiles(seeds):
    """Of five values the quartiles are the second and the fourth; a lost run is the largest."""
    panels = panels_of(sweep_plots.overview(seeds))
    assert [axes.get_title() for axes in panels] == ["rank 2", "rank 10"]
    for axes, rank in zip(panels, ["2", "10"], strict=True):
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        top = axes.get_ylim()[1]
        for i, name in enumerate(INITS):
            part = seeds[(seeds["params.rank"] == rank) & (seeds["params.init"] == name)]
            values = known(part).groupby(part["params.lr"]).apply(sorted)
            expected = [value[2] if np.isfinite(value[2]) else np.nan for value in values]
            np.testing.assert_array_equal(axes.lines[i].get_ydata(), expected)
            bars = [segment[:, 1] for segment in axes.collections[i].get_segments()]
            for (low, high), value in zip(bars, [v for v in values if np.isfinite(v[1])], strict=1):
                assert low == value[1]
                assert high == value[3] or (np.isinf(value[3]) and expected[0] < high < top)


def test_crosses_say_the_share_that_is_lost(seeds):
    axes = panels_of(sweep_plots.overview(seeds))[0]
    part = seeds[seeds["params.rank"] == "2"]
    share = (part["tags.outcome"] == "diverged").groupby([part["params.init"], part["params.lr"]])
    expected = [f"×{value:.0%}" if value < 1 else "×" for value in share.mean() if value > 0]
    assert [text.get_text() for text in axes.texts] == expected


def test_crosses_without_room_are_paler_the_less_are_lost():
    runs = sweep(lost=0.4, lr=np.geomspace(1e-4, 1, 40), seed=SEEDS)
    axes = panels_of(sweep_plots.overview(runs))[0]
    crosses = axes.collections[-1]
    share = (runs["tags.outcome"] == "diverged").groupby(runs["params.lr"].astype(float)).mean()
    share = share[share > 0]
    np.testing.assert_array_equal(crosses.get_offsets()[:, 0], share.index)
    assert crosses.get_facecolors()[:, 3] == pytest.approx(0.25 + 0.75 * share.to_numpy())


def test_many_colours_share_a_row_of_crosses():
    runs = sweep(lost=0.5, lr=RATES, init__scale=range(1, 9))
    axes = panels_of(sweep_plots.overview(runs))[0]
    share = (runs["tags.outcome"] == "diverged").groupby(runs["params.lr"]).mean()
    assert [text.get_text() for text in axes.texts] == [f"×{value:.0%}" for value in share]


def test_a_sweep_of_one_key_is_a_line():
    runs = sweep(lost=0, rank=[1, 2, 4, 8, 16])
    figure = sweep_plots.overview(runs)
    (line,) = panels_of(figure)[0].lines
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 4, 8, 16])
    np.testing.assert_array_equal(line.get_ydata(), known(runs))
    assert line.get_linestyle() == "-"
    assert "one run a dot" in note_of(figure)
    words = panels_of(sweep_plots.overview(sweep(lost=0, init=INITS)))[0]
    assert words.lines[0].get_linestyle() == "None", "nothing lies between two words"


def test_the_excess_is_drawn_if_all_that_ended_know_it(seeds):
    seeds["metrics.excess_loss"] = 2 * known(seeds)
    seeds.loc[0, "metrics.excess_loss"] = -1e-15
    seeds.loc[0, "tags.outcome"] = "converged"
    figure = sweep_plots.overview(seeds, title="demo")
    axes = panels_of(figure)[0]
    assert axes.get_ylabel().startswith("excess")
    assert figure.get_suptitle().replace("\n", " ") == "demo: digits, 1000 steps, 90 runs"
    assert "values up to 1e-16 are drawn at 1e-16" in note_of(figure)
    seeds.loc[1, ["metrics.excess_loss", "tags.outcome"]] = np.nan, "budget"
    seeds["params.loss.penalty"] = "0.1"
    axes = panels_of(sweep_plots.overview(seeds))[0]
    assert axes.get_ylabel() == "final relative error"


def test_all_settings_are_drawn_or_named():
    runs = sweep(rank=range(1, 4), lr=RATES, init=["a", "b"], loss=["c", "d"])
    assert len(panels_of(sweep_plots.overview(runs))) == 6
    assert note_of(sweep_plots.overview(runs)) == "one run a dot"
    runs = sweep(rank=range(1, 21), lr=RATES, init=["a", "b"], loss=["c", "d"])
    figure = sweep_plots.overview(runs)
    shown = [axes.get_title().removeprefix("rank ") for axes in panels_of(figure)]
    hidden = [str(rank) for rank in range(1, 21) if str(rank) not in shown]
    assert len(shown) == 12
    settings = 3 * 2 * 2
    said = f"{8 * settings} of {20 * settings} settings are not drawn: rank {', '.join(hidden)}"
    assert note_of(figure) == f"{said}; medians and quartiles over init, 2 runs a dot"


@pytest.fixture
def truncated() -> pandas.DataFrame:
    """Runs of the squared loss near the truncated singular value decomposition of a matrix, and of
    another loss."""
    D = np.random.default_rng(0).normal(size=(8, 6))
    U, sigma, V = np.linalg.svd(D)
    lines = []
    for rank, loss, miss in itertools.product([1, 2, 6], ["squared", "huber"], [1.01, 1.5]):
        misfit = np.linalg.norm(D - (U[:, :rank] * sigma[:rank] / miss) @ V[:rank])
        least = (sigma[rank:] ** 2).sum()
        line = {"params.rank": str(rank), "params.loss": loss, "params.lr": str(miss)}
        line["metrics.final_relative_error"] = misfit / np.linalg.norm(D)
        if loss == "squared":
            line["metrics.final_loss"] = 3 * misfit**2
            line["metrics.loss_gap"] = 3 * (misfit**2 - least)
            line["metrics.excess_loss"] = misfit**2 / least - 1 if rank < 6 else np.nan
        lines.append(line | {"params.problem.noise": "0.0", "tags.outcome": "budget"})
    runs = pandas.DataFrame(lines)
    energy = np.append(sigma[::-1].cumsum()[:0], [(sigma[k:] ** 2).sum() for k in (1, 2, 6)])
    runs.attrs["least"] = np.sqrt(energy / (sigma**2).sum())
    return runs


def test_the_floor_is_the_error_of_the_truncated_decomposition(truncated):
    least = spread.least_errors(truncated)
    for rank, expected in zip(["1", "2", "6"], truncated.attrs["least"], strict=True):
        of_rank = least[truncated["params.rank"] == rank]
        assert of_rank.tolist() == pytest.approx([expected] * 4, rel=1e-12)
    figure = sweep_plots.floor(truncated)
    (dashed,) = [line for line in panels_of(figure)[0].lines if line.get_linestyle() == "--"]
    np.testing.assert_array_equal(dashed.get_xdata(), [1, 2])
    assert dashed.get_ydata() == pytest.approx(truncated.attrs["least"][:2], rel=1e-12)
    assert "the least error is 0 at rank 6" in note_of(figure)


def test_losses_are_compared_by_the_excess_of_the_squared_error(truncated):
    runs = truncated[truncated["params.rank"] != "6"].copy()
    squared, huber = (runs[runs["params.loss"] == loss] for loss in ("squared", "huber"))
    excess = spread.excess_errors(runs)
    assert excess[squared.index].tolist() == squared["metrics.excess_loss"].tolist()
    error = huber["metrics.final_relative_error"].to_numpy()
    least = truncated.attrs["least"].repeat(2)[:4]
    assert excess[huber.index].tolist() == pytest.approx((error / least) ** 2 - 1, rel=1e-9)
    axes = panels_of(sweep_plots.overview(runs))[0]
    assert axes.get_ylabel() == "excess, squared error/least − 1"
    runs.loc[squared.index[0], "params.loss.penalty"] = "0.1"
    runs.loc[squared.index[0], "metrics.excess_loss"] = 0.0
    assert spread.excess_errors(runs)[0] == pytest.approx(excess[0], rel=1e-9)
    axes = panels_of(sweep_plots.overview(truncated))[0]
    assert axes.get_ylabel() == "final relative error", "of rank 6 the least error is 0"


@pytest.mark.parametrize("key", ["problem.noise", "problem.outliers", "loss.penalty"])
def test_the_floor_is_left_out_if_it_is_unknown(truncated, key):
    truncated[f"params.{key}"] = "0.1"
    assert spread.least_errors(truncated).isna().all()
    figure = sweep_plots.floor(truncated)
    assert not [line for line in panels_of(figure)[0].lines if line.get_linestyle() == "--"]
    assert "the least error is not known" in note_of(figure)


def test_the_floor_is_left_out_if_loss_and_error_are_of_two_matrices(truncated):
    """Such as the truth of a problem of the user's own, and what is seen of it."""
    truncated["metrics.final_relative_error"] += 0.1
    least = spread.least_errors(truncated)
    assert least[truncated["params.rank"] != "6"].isna().all()


def test_floor_needs_a_rank(seeds):
    with pytest.raises(Refused, match=r"^rank: no such column; "):
        sweep_plots.floor(seeds.drop(columns="params.rank"))


def test_phase_shows_shares(seeds):
    success = (known(seeds) < 1e-3).rename("relative_error < 1e-3")
    figure = phase.phase(seeds, success)
    axes, bar = figure.axes
    by = [seeds["params.rank"].astype(float), seeds["params.lr"].astype(float)]
    expected = success.groupby(by).mean().unstack()
    np.testing.assert_array_equal(axes.images[0].get_array(), expected)
    assert [text.get_text() for text in axes.get_xticklabels()] == RATES
    assert [text.get_text() for text in axes.get_yticklabels()] == ["2", "10"]
    assert bar.get_ylabel() == "share with relative_error < 1e-3"
    compared = seeds["metrics.final_relative_error"] < 1e-3
    assert phase.phase(seeds, compared).axes[1].get_ylabel() == "share of successes"
    lost = (seeds["tags.outcome"] == "diverged").groupby(by).mean().to_numpy()
    for text, share, gone in zip(axes.texts, expected.to_numpy().ravel(), lost, strict=True):
        assert text.get_text().split("\n")[:2] == [f"{share:.2g}", "n 15"]
        assert text.get_text().endswith(f"×{gone:.0%}") == (gone > 0)


def test_phase_pools_replicates():
    """A cell of two runs, with 10 and 30 replicates: 4 + 15 successes, 1 + 3 lost."""
    runs = sweep(lost=0, rank=[2, 10], lr=RATES, seed=range(2))
    first = runs["params.seed"] == "0"
    runs["params.replicates"] = np.where(first, "10", "30")
    runs["params.success"] = "loss < 1"
    runs["metrics.success_rate"] = np.where(first, 0.4, 0.5)
    runs["metrics.replicates.diverged"] = np.where(first, 1.0, 2.0)
    runs["metrics.replicates.undefined"] = np.where(first, np.nan, 1.0)
    axes, bar = phase.phase(runs, phase.find_rates(runs)).axes
    np.testing.assert_allclose(axes.images[0].get_array(), 19 / 40)
    assert {text.get_text() for text in axes.texts} == {"0.47\nn 40\n×10%"}
    assert bar.get_ylabel() == "share with loss < 1"
    assert phase.find_rates(runs.assign(**{"metrics.success_rate": np.nan})) is None
    assert phase.find_rates(runs.drop(columns="metrics.success_rate")) is None


def test_a_grid_of_two_numbers_shows_which_runs_arrive():
    axis = np.linspace(-1, 1, phase.GRID).round(3)
    runs = sweep(lost=0.3, init__x=axis, init__y=axis, seed=range(2))
    kept = (runs["tags.outcome"] == "budget").rename("a final value")
    pandas.testing.assert_series_equal(phase.find_arrivals(runs), kept)
    runs.loc[3, "tags.outcome"] = "converged"
    arrivals = phase.find_arrivals(runs)
    assert (arrivals.name, [*np.flatnonzero(arrivals)]) == ('outcome == "converged"', [3])
    for other in (
        sweep(init__x=axis, init__y=axis[1:]),  # coarse
        sweep(init__x=axis, init__y=axis, lr=RATES),
        sweep(init__x=axis, loss=[f"own{i}" for i in range(phase.GRID)]),
    ):
        assert phase.find_arrivals(other) is None


def test_a_large_phase_diagram_has_no_text_in_its_cells():
    runs = sweep(rank=range(1, 101), problem__observed=np.linspace(0.01, 1, 100).round(2))
    runs = runs.drop(index=0)
    figure = phase.phase(runs, known(runs) < 1e-3, keys=("problem.observed", "rank"))
    axes = figure.axes[0]
    image = axes.images[0].get_array()
    assert image.shape == (100, 100)
    assert image.mask.sum() == 1, "no run is there"
    assert not axes.texts
    assert len(axes.get_xticklabels()) <= 12
    assert "grey: no run" in note_of(figure)
    assert find_faults(figure) == []


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("rank",), "keys=rank: a phase diagram needs two keys; the runs vary rank, lr, init"),
        (("rank", "depth"), "depth: no such column"),
    ],
)
def test_phase_refuses(seeds, keys, message):
    with pytest.raises(Refused) as refused:
        phase.phase(seeds, known(seeds) < 1, keys=keys)
    assert str(refused.value).startswith(message)


STEPS = [0, 1, 2, 5, 10, 20]


@pytest.fixture
def curves(seeds) -> pandas.DataFrame:
    """A curve of every run: some ended early, some diverged."""
    rng = np.random.default_rng(2)
    lines = []
    for run_id, outcome in zip(seeds["run_id"], seeds["tags.outcome"], strict=True):
        n = rng.integers(2, 5) if outcome == "diverged" else rng.integers(3, 7)
        for step, value in zip(STEPS[:n], 10 ** rng.normal(size=n), strict=True):
            lines.append({"run_id": run_id, "step": step, "loss": value, "theory.loss": 0.5})
    return pandas.DataFrame(lines)


def test_curves_are_medians_of_runs_that_keep_their_last_value(seeds, curves):
    figure = sweep_curves.draw_curves(seeds, curves, by="init", measure="loss")
    (axes,) = figure.axes
    wide = curves.pivot(index="run_id", columns="step", values="loss")
    lost = seeds.set_index("run_id")["tags.outcome"].loc[wide.index] == "diverged"
    held = wide.where(lost, wide.ffill(axis=1), axis=0)
    held = held.fillna(np.inf)
    groups = held.groupby(seeds.set_index("run_id")["params.init"])
    solid = [line for line in axes.lines if line.get_linestyle() == "-"]
    for line, band, (_, part) in zip(solid, axes.collections, groups, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), STEPS)
        ordered = np.sort(part, axis=0)
        assert len(part) == 30
        median = (ordered[14] + ordered[15]) / 2
        assert line.get_ydata() == pytest.approx(
            np.where(np.isfinite(median), median, np.nan), nan_ok=True
        )
        low = ordered[7] + 0.25 * (ordered[8] - ordered[7])
        assert set(low.round(12)) <= set(band.get_paths()[0].vertices[:, 1].round(12))
    dashed = {tuple(line.get_ydata()) for line in axes.lines if line.get_linestyle() == "--"}
    assert dashed == {(0.5,) * len(STEPS)}
    assert axes.get_xscale() == "symlog"
    assert f"{lost.sum()} runs diverged" in note_of(figure)


def test_few_runs_have_their_own_curves(seeds, curves):
    few = seeds[seeds["tags.outcome"] == "budget"][:3]
    (axes,) = sweep_curves.draw_curves(few, curves.drop(columns="theory.loss"), measure="loss").axes
    assert len(axes.lines) == 3 + few["params.lr"].nunique()
    for line, run_id in zip(axes.lines[:1], few["run_id"], strict=False):
        own = curves[curves["run_id"] == run_id]["loss"].to_numpy()
        np.testing.assert_array_equal(line.get_ydata()[: len(own)], own)
    with pytest.raises(Refused, match=r"^measure=excess: no such curve; allowed are loss, theory"):
        sweep_curves.draw_curves(few, curves, measure="excess")
    with pytest.raises(Refused, match=r"^measure=loss: no run has such a curve"):
        sweep_curves.draw_curves(few, curves[~curves["run_id"].isin(few["run_id"])], measure="loss")


def test_runs_without_a_value_or_a_curve_are_counted(seeds, curves):
    unfinished = seeds["params.seed"] == "0"
    seeds.loc[unfinished, ["tags.outcome", "metrics.final_relative_error"]] = np.nan
    assert "18 runs without an outcome" in note_of(sweep_plots.overview(seeds))
    curves = curves[curves["run_id"].isin(seeds["run_id"][~unfinished])]
    assert "18 runs without this curve" in note_of(
        sweep_curves.draw_curves(seeds, curves, measure="loss")
    )


def find_faults(figure) -> list[str]:
    """Texts that are cut by the edge of the figure, or lie over another text."""
    figure.draw_without_rendering()
    width, height = figure.bbox.size
    faults, seen = [], []
    for text in figure.findobj(Text):
        if not (text.get_visible() and text.get_text().strip()):
            continue
        box = text.get_window_extent()
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1:
            faults.append(f"{text.get_text()!r} is cut")
        if text.get_rotation() == 35:
            continue  # names that lean have boxes that overlap
        inner = box.padded(-1.5)
        faults += [f"{text.get_text()!r} over {t!r}" for t, other in seen if inner.overlaps(other)]
        seen.append((text.get_text(), inner))
    return faults


PATHS = [f"/data/folder/matrix_{i}_of_all_measurements$a$.csv" for i in range(5)]
SHAPES = {
    "one run": {"lr": ["0.1"]},
    "seeds": {"seed": SEEDS},
    "one key": {"lr": np.geomspace(1e-4, 1, 60)},
    "words": {"init": [*INITS, "balanced", "orthogonal"], "loss": ["a", "b"], "optimizer": "xyz"},
    "numbers and words": {"lr": ["0.1", "null"], "rank": [1, 2, 4, 8, 16, 32]},
    "four keys": {"rank": [1, 2, 3], "lr": RATES, "init": ["a", "b"], "loss": ["c", "d"]},
    "formulas": {"problem__path": [r"$\q$", r"\$\q$", "$$"], "loss": [r"$\q$", "b"]},
    "long names": {"problem__path": PATHS, "loss": ["own.cauchy_with_width", "squared"]},
    "colours": {"lr": RATES, "init__scale": np.geomspace(1e-6, 1, 40)},
    "a thousand": {"rank": range(10), "lr": np.geomspace(1e-4, 1, 20), "seed": SEEDS},
}


@pytest.mark.parametrize("lost", [0.3, 1.1])
@pytest.mark.parametrize("keys", SHAPES.values(), ids=SHAPES)
def test_no_text_is_cut_or_lies_over_another(keys, lost):
    runs = sweep(lost, **keys)
    assert find_faults(sweep_plots.overview(runs, title=r"a sweep of $\q$")) == []
    records = {"step": [0, 1, 10], "relative_error": [1.0, 0.5, 0.01]}
    curves = pandas.DataFrame(records).merge(runs[["run_id"]], how="cross")
    assert find_faults(sweep_curves.draw_curves(runs, curves)) == []
    if "params.rank" in runs:
        assert find_faults(sweep_plots.floor(runs)) == []
    if len(keys) > 1:
        two = [key.replace("__", ".") for key in keys][:2]
        success = (known(runs) < 1e-3).rename(r"loss != '$\q$'")
        assert find_faults(phase.phase(runs, success, keys=two)) == []
