from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from cases import SYNTHETIC, mask_of, solve
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from test_config import composed

from mfgd import heatmaps, plots, problem
from mfgd.given import load_problem

MASKED = ("problem=synthetic", "problem.n=8", "problem.m=6", "problem.observed=0.5")


@pytest.fixture(scope="module")
def solved():
    point = composed(*MASKED, "steps=50", "lr=0.1")
    (row,) = solve([point])
    return row, load_problem(point.problem)


def test_curves_show_the_trajectory(solved):
    row, _ = solved
    # The optimum is 0, so that the loss is its own excess.
    for axes, name in zip(plots.curves(row).axes, ("loss", "relative_error"), strict=True):
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), row.trajectory[name])
        np.testing.assert_array_equal(axes.lines[0].get_xdata(), row.trajectory["step"])
        assert (axes.get_xscale(), axes.get_yscale()) == ("symlog", "log")
    heldout = plots.curves(row).axes[1].lines[1]  # half of the entries are observed
    assert heldout.get_label() == "held out"
    np.testing.assert_array_equal(heldout.get_ydata(), row.trajectory["heldout_error"])


def test_curves_show_the_optimum_and_the_excess():
    (row,) = solve([composed("problem=synthetic", "problem.noise=0.1", "steps=9")])
    loss, _, excess = plots.curves(row).axes
    measured, optimum = loss.lines
    assert optimum.get_label() == "theory"
    point = problem.synthetic(
        **SYNTHETIC | {"n": 100, "m": 80, "rank": 5, "condition": 1.0, "noise": 0.1}
    )
    sigma = np.linalg.svd(point.D.numpy(), compute_uv=False)
    least = (sigma[2:] ** 2).sum()
    assert optimum.get_ydata()[0] == pytest.approx(least, rel=1e-12)
    np.testing.assert_allclose(
        excess.lines[0].get_ydata(), measured.get_ydata() / least - 1, rtol=1e-9
    )


def test_spectrum_shows_measured_and_true_singular_values(solved):
    row, given = solved
    lines = plots.spectrum(row, given).axes[0].lines
    true = np.linalg.svd(given.truth.target.numpy(), compute_uv=False)
    assert [line.get_ydata()[0] for line in lines[1::2]] == pytest.approx(true[:2])
    np.testing.assert_array_equal(lines[0].get_ydata(), row.trajectory["sigma.1"])


def test_gradient_flow_is_drawn_beside_a_run():
    line = ("problem=synthetic", "problem.n=7", "problem.m=5", "problem.rank=2", "lr=0.1")
    (row,) = solve([composed(*line, "steps=40", "diagnostics=flow")])
    loss, error, *_ = plots.curves(row).axes
    for axes, name in ((loss, "loss"), (error, "relative_error")):
        (flow,) = (line for line in axes.lines if line.get_label() == "gradient flow")
        np.testing.assert_array_equal(flow.get_ydata(), row.trajectory[f"theory.flow.{name}"])
    (axes,) = plots.spectrum(row, load_problem(composed(*line).problem)).axes
    dotted = [line.get_ydata() for line in axes.lines if line.get_linestyle() == ":"]
    np.testing.assert_array_equal(dotted[1], row.trajectory["theory.flow.sigma.2"])


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


def test_heat_maps_show_what_is_known_of_an_entry(solved):
    row, given = solved
    observed, estimate, residual, unseen = maps_of(plots.matrices(row, given))
    hidden = (mask_of(given) == 0).numpy()
    np.testing.assert_array_equal(observed.mask, hidden)
    np.testing.assert_array_equal(residual.mask, hidden)
    np.testing.assert_array_equal(unseen.mask, ~hidden)
    product, truth = (row.factors[0] @ row.factors[1]).numpy(), given.truth.target.numpy()
    largest = abs(truth[~hidden]).max()
    np.testing.assert_allclose(estimate, product.clip(-largest, largest))
    np.testing.assert_allclose(residual[~hidden], (product - truth)[~hidden])
    np.testing.assert_allclose(unseen[hidden], (product - truth)[hidden])


def test_heat_maps_of_an_unknown_truth_are_three(solved):
    row, given = solved
    assert len(maps_of(plots.matrices(row, replace(given, truth=None)))) == 3


@pytest.mark.parametrize("factor", [1e-9, 1.0, 1e150, np.inf])
def test_scales_of_heat_maps(solved, factor):
    row, _ = solved
    D = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    off = torch.tensor([[-1.0, factor], [0.5 * factor, 0.0]], dtype=torch.float64)
    ended = replace(row, factors=(D + off, torch.eye(2, dtype=D.dtype)))
    figure = plots.matrices(ended, problem.from_matrix(D))
    first, second, third = (axes.images[0] for axes in figure.axes[:3])
    assert first.get_clim() == second.get_clim() == (1.0, 4.0)
    assert first.get_cmap().name == "viridis"
    bound = max(1.0, factor) if np.isfinite(factor) else 1.0
    assert third.get_clim() == (-bound, bound)
    signed = plots.matrices(ended, problem.from_matrix(D - 3))
    first, second, third = (axes.images[0] for axes in signed.axes[:3])
    assert first.get_clim() == second.get_clim() == (-2.0, 2.0)
    assert {image.get_cmap().name for image in (first, second, third)} == {"RdBu_r"}


@pytest.mark.parametrize("title", ["", "rank 4, lr 0.01", "rank 4, lr 0.01, init spectral, " * 5])
def test_no_text_overlaps_or_is_cut(title):
    point = composed(*MASKED, "problem.noise=0.1", "steps=50", "lr=0.1", "diagnostics=full")
    (row,) = solve([point])
    for name, figure in plots.figures(row, load_problem(point.problem), title).items():
        figure.draw_without_rendering()
        assert title.strip() in " ".join(figure.get_suptitle().split()), name
        boxes = {text: text.get_window_extent() for text in texts_of(figure) if text.get_text()}
        for text, box in boxes.items():
            assert Bbox.union([figure.bbox, box]).bounds == figure.bbox.bounds, (name, text)
        for (one, box), (other, space) in combinations(boxes.items(), 2):
            assert not box.overlaps(space), (name, one, other)


def texts_of(figure) -> Iterator[Text]:
    """The titles and labels of a figure, without those in legends."""
    yield from figure.texts
    for axes in figure.axes:
        yield from (child for child in axes.get_children() if isinstance(child, Text))
        for k, axis in enumerate((axes.xaxis, axes.yaxis)):
            low, high = sorted(axis.get_view_interval())
            yield from (axis.label, axis.get_offset_text())
            for label in axis.get_ticklabels():
                if low <= label.get_position()[k] <= high:
                    yield label


def maps_of(figure) -> list:
    """The matrices of a figure of heat maps."""
    return [axes.images[0].get_array() for axes in figure.axes if axes.images]


def test_a_users_text_is_no_formula(solved):
    r"""matplotlib is told to read no formula, and draws the same; `$\q$` would be an error."""

    def draw(figure):
        figure.canvas.draw()
        return np.asarray(figure.canvas.buffer_rgba()).copy()

    for title in (r"path $\q$.csv", "a$b", r"\$a$", "$$", "$x^2$"):
        figure = plots.curves(solved[0], title)
        FigureCanvasAgg(figure)
        drawn = draw(figure)
        (shown,) = [text for text in figure.texts if "budget" in text.get_text()]
        shown.set_text(f"{title}: budget at step 50")
        shown.set_parse_math(False)
        np.testing.assert_array_equal(drawn, draw(figure))


def test_pictures_of_signed_matrices_are_white_at_0():
    D = torch.tensor([[-1.0, 0.0], [0.5, 1.0]], dtype=torch.float64)
    picture = heatmaps.pictures(problem.from_matrix(D), (D, torch.eye(2, dtype=D.dtype)))["D_hat"]
    assert picture[0, -1].min() > 240
    assert picture[0, 0].argmax() == 2  # blue below 0
    assert picture[-1, -1].argmax() == 0  # red above 0


def test_pictures_keep_the_scale_of_D():
    D = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    pictures = heatmaps.pictures(problem.from_matrix(D), (D, torch.eye(2, dtype=D.dtype)))
    assert pictures["D_hat"].shape == (256, 256, 3)
    low, high = pictures["D_hat"][0, 0], pictures["D_hat"][0, -1]
    assert (tuple(low), tuple(high)) == ((68, 1, 84), (253, 231, 36))  # the ends of viridis
    assert np.ptp(pictures["residual"], axis=(0, 1)).max() == 0


@pytest.mark.parametrize("shape", [(3, 4), (1797, 64), (64, 1797), (700, 900), (1, 1)])
def test_pictures_of_any_shape(shape):
    D = torch.rand(shape, dtype=torch.float64)
    picture = heatmaps.pictures(
        problem.from_matrix(D), (torch.full_like(D, torch.nan), torch.eye(shape[1], dtype=D.dtype))
    )["D_hat"]
    assert max(picture.shape) <= 600
    assert (picture == 204).all()
