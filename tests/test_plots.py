import numpy as np
import pandas
import pytest
import torch
from cases import SYNTHETIC, mask_of, solve
from test_config import composed

from mfgd import plots, problem
from mfgd.batch import load_problem
from mfgd.sweep_plots import find_varied, overview

MASKED = ("problem=synthetic", "problem.n=8", "problem.m=6", "problem.observed=0.5")


@pytest.fixture(scope="module")
def solved():
    point = composed(*MASKED, "steps=50", "lr=0.1")
    (row,) = solve([point])
    return row, load_problem(point.problem)


def test_curves_show_the_trajectory(solved):
    row, _ = solved
    for axes, name in zip(plots.curves(row).axes, ("loss", "relative_error"), strict=True):
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), row.trajectory[name])
        np.testing.assert_array_equal(axes.lines[0].get_xdata(), row.trajectory["step"])
        assert (axes.get_xscale(), axes.get_yscale()) == ("symlog", "log")
    heldout = plots.curves(row).axes[1].lines[1]  # half of the entries are observed
    assert heldout.get_label() == "held out"
    np.testing.assert_array_equal(heldout.get_ydata(), row.trajectory["heldout_error"])


def test_curves_show_the_optimum():
    (row,) = solve([composed("problem=synthetic", "problem.noise=0.1", "steps=9")])
    _, optimum = plots.curves(row).axes[0].lines
    assert optimum.get_label() == "theory"
    point = problem.synthetic(
        **SYNTHETIC | {"n": 100, "m": 80, "rank": 5, "condition": 1.0, "noise": 0.1}
    )
    sigma = np.linalg.svd(point.D.numpy(), compute_uv=False)
    assert optimum.get_ydata()[0] == pytest.approx((sigma[2:] ** 2).sum(), rel=1e-12)


def test_spectrum_shows_measured_and_true_singular_values(solved):
    row, given = solved
    lines = plots.spectrum(row, given).axes[0].lines
    true = np.linalg.svd(given.truth.target.numpy(), compute_uv=False)
    assert [line.get_ydata()[0] for line in lines[1::2]] == pytest.approx(true[:2])
    np.testing.assert_array_equal(lines[0].get_ydata(), row.trajectory["sigma.1"])


def test_dynamics_draws_theory_over_measurements():
    line = (
        "problem=synthetic",
        "problem.rank=2",
        "loss.scale=0.5",
        "init.scale=0.1",
        "lr=0.5",
        "steps=300",
    )
    (row,) = solve([composed(*line, "problem.n=20", "problem.m=15", "diagnostics=full")])
    modes, apart, contraction, sharpness = plots.dynamics(row).axes
    np.testing.assert_array_equal(modes.lines[1].get_ydata(), row.trajectory["mode.2"])
    assert len(modes.lines) == 2  # as many as the rank
    assert [line.get_label() for line in apart.lines] == [
        "angle, left",
        "angle, right",
        "factor distance",
    ]
    assert set(contraction.lines[1].get_ydata()) == {row.trajectory["theory.contraction"][0]}
    measured, theory, limit = sharpness.lines
    assert (measured.get_ydata()[-1], limit.get_ydata()[-1]) == pytest.approx(
        (theory.get_ydata()[-1], 4.0), rel=1e-9
    )


def test_heat_maps_leave_missing_entries_out(solved):
    row, given = solved
    images = [axes.images[0].get_array() for axes in plots.matrices(row, given).axes[:3]]
    hidden = (mask_of(given) == 0).numpy()
    np.testing.assert_array_equal(images[0].mask, hidden)
    np.testing.assert_allclose(images[1], row.factors[0] @ row.factors[1])
    np.testing.assert_array_equal(images[2].mask, hidden)


def test_pictures_keep_the_scale_of_D():
    D = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    pictures = plots.pictures(problem.from_matrix(D), (D, torch.eye(2, dtype=D.dtype)))
    assert pictures["D_hat"].shape == (256, 256, 3)
    low, high = pictures["D_hat"][0, 0], pictures["D_hat"][0, -1]
    assert (tuple(low), tuple(high)) == ((68, 1, 84), (253, 231, 36))  # the ends of viridis
    assert np.ptp(pictures["residual"], axis=(0, 1)).max() == 0


@pytest.mark.parametrize("shape", [(3, 4), (1797, 64), (64, 1797), (700, 900), (1, 1)])
def test_pictures_of_any_shape(shape):
    D = torch.rand(shape, dtype=torch.float64)
    picture = plots.pictures(
        problem.from_matrix(D), (torch.full_like(D, torch.nan), torch.eye(shape[1], dtype=D.dtype))
    )["D_hat"]
    assert max(picture.shape) <= 600
    assert (picture == 204).all()


def frame(**columns) -> pandas.DataFrame:
    return pandas.DataFrame({name.replace("__", "."): values for name, values in columns.items()})


def test_overview_has_a_panel_for_each_setting():
    lrs, losses = ["0.1", "0.01"] * 4, ["huber"] * 4 + ["squared"] * 4
    runs = frame(params__lr=lrs, params__rank=["1", "1", "10", "10"] * 2, params__loss=losses)
    runs["metrics.final_relative_error"] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, np.nan]
    runs["tags.outcome"] = ["budget"] * 6 + ["converged", "diverged"]
    huber, squared, *_ = overview(runs).axes
    assert (huber.get_title(), squared.get_title()) == ("loss huber", "loss squared")
    assert [label.get_text() for label in huber.get_xticklabels()] == ["0.01", "0.1"]
    assert [label.get_text() for label in huber.get_yticklabels()] == ["1", "10"]
    np.testing.assert_array_equal(huber.images[0].get_array(), [[0.2, 0.1], [0.4, 0.3]])
    assert [text.get_text() for text in squared.texts] == ["0.6", "0.5", "×", "0.7"]


@pytest.mark.parametrize(
    "columns", [{}, {"params__lr": ["0.1", "0.2", "0.3"]}, {"params__seed": ["1", "2", "3"]}]
)
def test_overview_of_few_axes(columns):
    runs = frame(run_id=["a", "b", "c"], **columns)
    runs["tags.outcome"], runs["metrics.final_relative_error"] = "diverged", np.nan
    assert len(overview(runs).axes) == 1
    runs["tags.outcome"], runs["metrics.final_relative_error"] = "budget", [0.1, 0.2, 0.3]
    assert len(overview(runs).axes) == 2


def test_find_varied_leaves_out_params_that_follow_from_others():
    runs = pandas.DataFrame(
        {
            "params.rank": ["1", "2", "1"],
            "params.loss": ["huber", "squared", "huber"],
            "params.seed": ["0", "0", "0"],
        }
        | {"params.loss.delta": ["1.0", None, "1.0"], "metrics.loss": [1.0, 2.0, 3.0]}
    )
    assert find_varied(runs) == ["rank", "loss"]
