"""Problems of linear measurements: how they are drawn, and runs of them on the shell line."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import SENSING, solve
from numpy.testing import assert_allclose, assert_array_equal
from safetensors.torch import save_file
from test_config import composed

import mfgd
from mfgd import capacity, heatmaps, plan, plots
from mfgd.artifacts import read_run, write_config, write_row
from mfgd.given import draw_start, forget_problems, load_problem
from mfgd.problem import sensing, sensing_file
from mfgd.rank_one import VectorMeasurements
from mfgd.tracked import format_params
from mfgd.types import Refused

SQUARE = SENSING | {"m": SENSING["n"], "symmetric": True}
MEAN = "loss.scale=0.5 loss.reduction=mean"
ENSEMBLES = pytest.mark.parametrize(
    "ensemble", ["gaussian", "symmetric", "rank_one", "rank_one_symmetric"]
)


def matrices(seen) -> np.ndarray:
    """A₁ … A_N as matrices."""
    if isinstance(seen, VectorMeasurements):
        return np.einsum("in,im->inm", seen.a, seen.b)
    return seen.A.numpy()


@ENSEMBLES
def test_measurements_are_those_of_the_truth(ensemble):
    given = sensing(**SQUARE | {"ensemble": ensemble, "condition": 4.0})
    D = given.truth.target.numpy()
    assert_allclose(np.linalg.svd(D, compute_uv=False)[:3], [1, 0.25, 0], atol=1e-12)
    assert np.linalg.eigvalsh(D)[0] > -1e-12
    assert_allclose(given.D[0], np.einsum("inm,nm->i", matrices(given.observation), D), rtol=1e-10)
    assert (given.rank, given.generated, given.complete, given.hides_truth) == (
        2,
        True,
        False,
        True,
    )


@ENSEMBLES
def test_ensembles_have_their_second_moments(ensemble):
    """The mean of ⟨A, D⟩² is ‖D‖²; of ⟨aaᵀ, D⟩² it is 2‖D‖² + (tr D)²: Isserlis 1918."""
    count = 40_000
    keys = {"ensemble": ensemble, "measurements": count, "spectrum": [3.0, 1.0]}
    given = sensing(**SQUARE | keys)
    squares = given.D.numpy().ravel() ** 2
    expected = 2 * 10 + 16 if ensemble == "rank_one_symmetric" else 10
    assert abs(squares.mean() - expected) < 5 * squares.std() / np.sqrt(count)
    # The adjoint gives D back in the mean, to about ‖D‖ √(2n/N).
    U, sigma, Vh = given.observation.leading_triplets(7)
    gap = (U * sigma @ Vh - given.truth.target).norm()
    assert gap < 4 * np.sqrt(10) * 7 / np.sqrt(count)


def test_a_symmetric_gaussian_matrix_has_the_symmetric_part_of_one():
    A = matrices(sensing(**SQUARE | {"ensemble": "symmetric"}).observation)
    G = matrices(sensing(**SQUARE).observation)
    assert_array_equal(A, (G + G.transpose(0, 2, 1)) / 2)


@ENSEMBLES
def test_more_measurements_have_the_fewer_ones_among_them(ensemble):
    keys = SQUARE | {"ensemble": ensemble, "noise": 0.3}
    few, many = (sensing(**keys | {"measurements": count}) for count in (13, 40))
    assert (few.count, many.count) == (13, 40)
    assert_array_equal(matrices(few.observation), matrices(many.observation)[:13])
    assert_allclose(few.D[0], many.D[0, :13], rtol=1e-12)
    assert_array_equal(few.truth.target, many.truth.target)


def test_how_many_measurements():
    given = sensing(**SENSING | {"oversampling": 2.5})
    assert given.count == round(2.5 * 2 * (7 + 5))
    assert given.overruled == {"measurements": 60}
    given = sensing(**SENSING | {"measurements": 30, "spectrum": [2.0, 1.0, 1.0]})
    assert given.count == 30
    assert given.overruled == {"rank": 3, "condition": 2.0, "oversampling": 30 / 36}


def test_noise_has_its_standard_deviation():
    keys = SENSING | {"measurements": 20_000}
    clean, noisy = (sensing(**keys | {"noise": noise}) for noise in (0.0, 0.5))
    noise = (noisy.D - clean.D).numpy()
    assert abs(noise.std() - 0.5) < 5 * 0.5 / np.sqrt(2 * 20_000)
    assert abs(noise.mean()) < 5 * 0.5 / np.sqrt(20_000)
    assert (noisy.rank, noisy.noise) == (None, None)
    assert noisy.draws.keys() - clean.draws.keys() == {"noise"}


@ENSEMBLES
def test_measurements_that_are_held_out_are_not_seen(ensemble):
    keys = SQUARE | {"ensemble": ensemble, "measurements": 40, "noise": 0.1}
    whole, given = sensing(**keys), sensing(**keys | {"heldout": 0.25})
    assert (given.count, given.heldout.count) == (30, 10)
    y = np.concatenate([given.D[0], given.heldout.target[0]])
    assert_array_equal(np.sort(y), np.sort(whole.D[0]))
    for part in (given.observation, given.heldout):
        A, values = matrices(part), part.target[0].numpy()
        at = [int(np.flatnonzero(whole.D[0].numpy() == value)[0]) for value in values]
        assert at == sorted(at)
        assert_array_equal(A, matrices(whole.observation)[at])


REFUSED = {
    "problem.m=9 problem.symmetric=true": r"problem\.n=20, problem\.m=9: must be square",
    "problem.ensemble=symmetric": r"symmetric: sees only .*; allowed with problem.symmetric=true",
    "problem.ensemble=rank_one_symmetric": "sees only the symmetric part of D",
    "problem.rank=21": r"problem\.rank=21: must be between 1 and min\(n, m\) = 20",
    "problem.measurements=2.5": r"problem\.measurements=2\.5: must be an integer",
    "problem.measurements=3 problem.heldout=0.1": "holds out 0 of 3 measurements; must be 1 to 2",
    "problem.symmetric=true problem.ensemble=rank_one_symmetric lr_unit=sigma1": (
        r"problem\.ensemble=rank_one_symmetric: the mean of .*; allowed are lr_unit=absolute"
    ),
    "problem.symmetric=true problem.ensemble=rank_one_symmetric init=sketch": "init=spectral",
    "init=uniform optimizer=mu": "optimizer=mu: allowed are problems whose entries are observed",
    "problem.measurements=100000000": (
        r"problem=sensing with problem\.measurements=100000000: 100000000×400 entries take 320 GB; "
        r".*; allowed are fewer measurements, smaller n and m, and problem\.ensemble=rank_one"
    ),
    "problem.n=30000 problem.m=30000 problem.oversampling=100": (
        r"problem\.oversampling=100, 12000000 measurements: 12000000×900000000 entries take"
    ),
}


@pytest.mark.parametrize(("line", "reason"), REFUSED.items())
def test_what_cannot_be_measured_is_refused(line, reason):
    with pytest.raises(Refused, match=reason):
        plan.group_points([composed("problem=sensing", *line.split())])


def test_what_is_held_out_takes_its_copy(monkeypatch):
    monkeypatch.setattr(capacity, "free_memory", lambda: 1.5 * 8 * 72 * 35)
    sensing(**SENSING)
    with pytest.raises(Refused, match=r"problem\.oversampling=3, 72 measurements: 72×35 entries"):
        sensing(**SENSING | {"heldout": 0.1})


# From a file


def write(folder, name="sensing.npz", **arrays) -> str:
    path = str(folder / name)
    if name.endswith(".npz"):
        np.savez(path, **arrays)
    else:
        save_file({key: torch.as_tensor(X) for key, X in arrays.items()}, path)
    return path


@pytest.mark.parametrize("name", ["sensing.npz", "sensing.safetensors"])
@ENSEMBLES
def test_a_file_gives_the_problem_that_was_written(ensemble, name, tmp_path):
    drawn = sensing(**SQUARE | {"ensemble": ensemble, "measurements": 40})
    path = write(tmp_path, name, **drawn.observation.arrays())
    read = sensing_file(path=path, heldout=0.0, seed=0)
    assert type(read.observation) is type(drawn.observation)
    assert_array_equal(read.D, drawn.D)
    assert_array_equal(matrices(read.observation), matrices(drawn.observation))
    assert (read.truth, read.rank, read.generated) == (None, None, False)
    assert f"{path}: 40 measurements of a 7×7 matrix by " in read.source.summary
    assert (
        load_problem(
            composed("problem=sensing_file", f"problem.path={path}", "problem.heldout=0.25").problem
        ).heldout.count
        == 10
    )


@pytest.mark.parametrize("scale", [1.0, 30.0])
@ENSEMBLES
def test_the_scale_of_a_file_s_matrices_is_found(ensemble, scale, tmp_path):
    """The estimate is that of the drawn ensemble, up to the mean square of what was drawn."""
    drawn = sensing(**SQUARE | {"ensemble": ensemble, "measurements": 20_000})
    arrays = {key: X.numpy() for key, X in drawn.observation.operator.items()}
    factor = scale ** (1 if "A" in arrays else 2)
    arrays = {key: scale * X for key, X in arrays.items()} | {"y": factor * drawn.D[0].numpy()}
    read = sensing_file(path=write(tmp_path, **arrays), heldout=0.0, seed=0)
    gap = read.observation.estimate() - drawn.observation.estimate()
    assert gap.norm() < 0.02 * drawn.truth.target.norm()


Y, A4 = np.arange(1.0, 5), np.ones((4, 3, 2))
REFUSED_FILES = {
    "arrays A; needed are y and A, or y, a and b, or y and a": {"A": A4},
    "arrays A, a, y; needed are": {"y": Y, "A": A4, "a": A4[..., 0]},
    "arrays b, y; needed are": {"y": Y, "b": A4[..., 0]},
    "A is 4×6; needed is N×n×m with N = 4, as many as y": {"y": Y, "A": A4.reshape(4, 6)},
    "A is 4×3×2; needed is N×n×m with N = 3": {"y": Y[:3], "A": A4},
    "b is 4; needed is N×m": {"y": Y, "a": A4[..., 0], "b": Y},
    "A has entries that are not finite; allowed": {"y": Y, "A": np.full((4, 3, 2), np.nan)},
    "y has entries that are not finite": {"y": np.array([1, 2, 3, np.inf]), "A": A4},
    "A is 0 everywhere": {"y": Y, "A": 0 * A4},
}


@pytest.mark.parametrize(("reason", "arrays"), REFUSED_FILES.items())
def test_files_that_are_refused(reason, arrays, tmp_path):
    path = write(tmp_path, **arrays)
    with pytest.raises(Refused, match=f"^problem.path={path}: {reason}"):
        sensing_file(path=path, heldout=0.0, seed=0)


# Runs


def grid(*lines: str) -> list:
    return [composed("problem=sensing", *line.split()) for line in lines]


RECOVERED = {
    "small start": f"{MEAN} rank=2 init=normal init.scale=1e-3 lr=0.25 steps=600",
    "small start, positive semidefinite": (
        f"{MEAN} problem.symmetric=true rank=2 init=normal init.scale=1e-3 lr=0.25 steps=600"
    ),
    "symmetric": (
        f"{MEAN} problem.symmetric=true problem.ensemble=symmetric rank=2 init=spectral lr=0.25 "
        "steps=300"
    ),
    "scaled": (
        f"{MEAN} problem.condition=10 rank=2 init=spectral optimizer=scaled_gd lr=0.5 steps=150"
    ),
    "least squares": "rank=2 init=spectral optimizer=als steps=40",
    "least squares for F": f"{MEAN} rank=2 init=spectral optimizer=alt_gd_min lr=0.5 steps=200",
    "blind deconvolution": (
        f"{MEAN} problem.ensemble=rank_one problem.rank=1 problem.oversampling=4 rank=1 "
        "init=spectral lr=0.3 steps=400"
    ),
    "phase retrieval": (
        f"{MEAN} problem.ensemble=rank_one_symmetric problem.symmetric=true problem.rank=1 rank=1 "
        "init=spectral lr=0.1 steps=600"
    ),
    "single precision": (
        f"{MEAN} rank=2 init=spectral lr=0.4 lr_unit=sigma1 steps=300 dtype=float32"
    ),
    "absolute loss": (
        "loss=absolute loss.reduction=mean problem.oversampling=5 rank=2 init=spectral "
        "optimizer=polyak lr=1 steps=1000"
    ),
}


@pytest.mark.parametrize("line", RECOVERED.values(), ids=RECOVERED)
def test_descent_finds_the_truth(line):
    (point,) = grid(line)
    (row,) = solve([point])
    truth = load_problem(point.problem).truth.target
    C, F = row.factors
    error = float((C.double() @ F.double() - truth).norm() / truth.norm())
    assert error < 1e-5
    rounding = torch.finfo(point.dtype).eps  # of the truth that the run was measured by
    assert row.trajectory["relative_error"][-1] == pytest.approx(error, rel=1e-3, abs=rounding)
    assert not any(name.startswith("oracle") for name in row.tags)


def test_a_small_start_finds_a_matrix_of_low_rank_at_full_rank():
    """Stöger, Soltanolkotabi 2021: the error is small although there are fewer measurements than
    numbers in D, and of an ordinary start it is not."""
    line = f"{MEAN} problem.oversampling=5 rank=20 init=normal lr=0.25 steps=200"
    small, large = solve(grid(f"{line} init.scale=1e-6", f"{line} init.scale=1"))
    assert small.trajectory["relative_error"][-1] < 1e-3
    assert large.trajectory["relative_error"][-1] > 0.1


def test_held_out_measurements_are_measured():
    (point,) = grid(f"{MEAN} problem.heldout=0.2 problem.noise=0.1 rank=2 init=spectral steps=5")
    (row,) = solve([point])
    held, X = load_problem(point.problem).heldout, (row.factors[0] @ row.factors[1]).numpy()
    gap = np.einsum("inm,nm->i", held.A, X) - held.target[0].numpy()
    expected = np.linalg.norm(gap) / np.linalg.norm(held.target)
    assert row.trajectory["heldout_error"][-1] == pytest.approx(expected, rel=1e-12)
    assert row.tags.keys() >= {"draw.data", "draw.operator", "draw.noise", "draw.heldout"}


EXACT = {
    "matrices": "rank=2 problem.noise=0.01 diagnostics=full steps=40",
    "matrices, deep, float32": "depth=3 rank=3 dtype=float32 steps=100",
    "tiny": "problem.n=3 problem.m=4 problem.rank=1 rank=1 steps=100",
    "vectors": "problem.ensemble=rank_one rank=2 loss=huber loss.delta=0.1 steps=100",
    "quadratic": (
        "problem.ensemble=rank_one_symmetric problem.symmetric=true problem.rank=1 rank=1 steps=100"
    ),
    "least squares": "optimizer=als rank=2 steps=6 init=normal",
    "symmetric": "problem.ensemble=symmetric problem.symmetric=true rank=2 optimizer=adam steps=40",
}
COMPANY = ["", "seed=1 lr=0.02", "problem.seed=1 lr=1e4", "problem.seed=1 seed=2", "seed=3"]


@pytest.mark.parametrize("shared", [True, False], ids=["one operator", "several"])
@pytest.mark.parametrize(("name", "line"), EXACT.items(), ids=EXACT)
def test_a_run_alone_and_in_a_batch_agree_bit_for_bit(name, line, shared):
    points = grid(*(f"{MEAN} init.scale=0.1 record.points=5 {line} {other}" for other in COMPANY))
    company = [points[0], points[1], points[4]] if shared else points
    # A large crowd of tiny runs is interleaved, a run alone is not.
    crowd = range(10, 800 if name == "tiny" else 13)
    rows = solve(company + [replace(points[0], seed=seed) for seed in crowd])
    for point, row in zip(company, rows, strict=False):
        (alone,) = solve([point])
        for a, b in zip(alone.factors, row.factors, strict=True):
            assert torch.equal(a.nan_to_num(), b.nan_to_num())
        for measure in alone.trajectory.keys() - {"seconds"}:
            left, right = alone.trajectory[measure], row.trajectory[measure]
            assert left.tobytes() == right.tobytes(), measure


def test_runs_of_one_operator_share_a_batch_and_those_of_several_if_they_fit():
    lines = [f"problem.seed={data} seed={seed}" for data in (0, 1) for seed in range(3)]
    # 240·400 numbers of A for each problem, and less than 4·400 for a run.
    assert plan.group_points(grid(*(f"{line} batch_bytes=100000" for line in lines))) == [
        [0, 1, 2],
        [3, 4, 5],
    ]
    assert plan.group_points(grid(*(f"{line} batch_bytes=10000000" for line in lines))) == [
        [0, 1, 2, 3, 4, 5]
    ]


def test_large_operators_are_not_kept_for_other_problems(monkeypatch):
    points = grid(*(f"problem.seed={seed}" for seed in range(3)))
    for free, kept in ((1e12, 3), (1e6, 1)):
        forget_problems()
        monkeypatch.setattr("mfgd.given.free_memory", lambda free=free: free)
        for point in points:
            assert load_problem(point.problem) is load_problem(point.problem)
        assert load_problem.cache_info().currsize == kept
    forget_problems()


def test_the_figure_of_the_matrices_has_the_truth_beside_the_estimate():
    (point,) = grid("problem.ensemble=rank_one rank=2 steps=2")
    (row,), given = solve([point]), load_problem(point.problem)
    figure = plots.figures(row, given)["matrices"]
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["D*", "D̂", "D̂ − D*"]
    assert_allclose(figure.axes[0].images[0].get_array(), given.truth.target)
    assert heatmaps.pictures(given, row.factors).keys() == {"D_hat", "residual"}
    unknown = plots.figures(row, replace(given, truth=None))["matrices"]
    assert [axes.get_title() for axes in unknown.axes][:3] == ["A*(y)", "D̂", "D̂ − A*(y)"]


def test_replicates_have_operators_of_their_own(monkeypatch):
    line = (
        f"{MEAN} problem.n=6 problem.m=6 problem.rank=1 rank=1 init=spectral lr=0.3 steps=50 "
        "replicates=4 problem.seed=${seed}"
    )
    sizes = []
    (point,) = grid(line)
    original = mfgd.attempt.Batch

    def note(points):
        sizes.append(len(points))
        return original(points)

    monkeypatch.setattr("mfgd.attempt.Batch", note)
    for size, expected in ((10**7, [4]), (30_000, [2, 2])):
        sizes.clear()
        ((ensemble,),) = mfgd.replicates.solve_ensembles([replace(point, batch_bytes=size)])
        assert sizes == expected
        assert len(set(ensemble.table["draw.operator"])) == 4
    single, losses = line.partition(" replicates")[0], []
    for seed in range(4):
        (row,) = solve(grid(f"{single} problem.seed={seed} seed={seed}"))
        losses.append(row.trajectory["loss"][-1])
    assert_array_equal(ensemble.table["final_loss"], losses)


def test_a_run_is_read_back_and_its_params_are_what_was_used(tmp_path):
    (point,) = grid("problem.n=8 problem.m=6 problem.rank=1 rank=1 init=spectral steps=3")
    (row,), problem = solve([point]), load_problem(point.problem)
    write_row(tmp_path, row, problem)
    write_config(tmp_path, point)
    run = read_run(tmp_path)
    assert set(run.matrices) == {"C", "F", "y", "A"}
    assert_array_equal(run.matrices["A"], problem.observation.A)
    assert_array_equal(run.matrices["y"], problem.D[0])
    params = format_params(point, problem)
    assert params["problem.measurements"] == params["data.observed"] == "42"
    assert params["problem.oversampling"] == "3.0"
    forget_problems()
    assert_array_equal(load_problem(point.problem).D, problem.D)


@pytest.mark.parametrize("ensemble", ["gaussian", "rank_one_symmetric"])
def test_the_spectral_start_of_tied_factors_is_the_best_positive_part(ensemble):
    n = SENSING["n"]
    point = composed(
        *("problem=sensing", f"problem.ensemble={ensemble}", f"problem.n={n}", f"problem.m={n}"),
        *("problem.symmetric=true", "symmetric=true", "init=spectral", "rank=2"),
    )
    given = load_problem(point.problem)
    A, y = matrices(given.observation), given.observation.target.numpy().ravel()
    X = np.einsum("i,inm->nm", y, A) / len(y)
    if ensemble == "rank_one_symmetric":
        X = (X - y.mean() * np.eye(n)) / 2
    values, vectors = np.linalg.eigh((X + X.T) / 2)
    best = (vectors[:, -2:] * values[-2:].clip(min=0)) @ vectors[:, -2:].T
    U, F = draw_start(given, point)
    assert_allclose(U @ F, best, atol=1e-10)
    assert np.linalg.norm(best - given.truth.target.numpy()) < 1.2
