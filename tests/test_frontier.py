"""hydra/sweeper=frontier: where an outcome changes along one key."""

import math

import numpy as np
import pandas
import pytest
from mlflow import MlflowClient

from mfgd.bisection import Axis, Cell, Reply
from mfgd.frontier import Frontier
from mfgd.result import Result
from mfgd.search import SearchSweeper

FRONTIER = ("--multirun", "hydra/sweeper=frontier")
MEMORY = ("tracking=memory",)
AXES = {
    "linear": Axis("lr", -1.0, 3.0, resolution=0.01),
    "log": Axis("lr", 1e-6, 10.0, is_log=True, resolution=0.01),
    "whole": Axis("rank", 1, 1000, is_whole=True),
    "whole, log": Axis("rank", 1, 1000, is_log=True, is_whole=True),
    "thousandth": Axis("lr", 0.5, 2.0),
    "thousandth, log": Axis("lr", 0.001, 1.0, is_log=True),
    "finest": Axis("lr", 0.1, 0.2, resolution=1e-300),
}
WIDEST = {"linear": 0.01, "whole": 1, "whole, log": 1, "thousandth": 0.0015, "finest": 1e-16}


@pytest.mark.parametrize("name", AXES)
@pytest.mark.parametrize("below", [True, False])
def test_a_bracket_holds_the_change_in_as_few_runs_as_halving_takes(name, below):
    axis = AXES[name]
    for share in np.linspace(0.001, 0.999, 37):
        change = axis.low + share**3 * (axis.high - axis.low)
        cell = Cell({}, axis.low, axis.high)
        while asked := cell.list_asked(axis):
            for value in asked:
                cell.tell(value, Reply((value < change) == below, math.nan))
        assert cell.low < change <= cell.high
        assert cell.success == ("below" if below else "above")
        if "log" in name and "whole" not in name:
            assert cell.high / cell.low <= (1.01 if name == "log" else 1000**0.001) * (1 + 1e-12)
        else:
            assert cell.high - cell.low <= WIDEST[name]
        if name == "whole":
            assert cell.low == int(cell.low)
        assert cell.runs <= 2 + {"finest": 60, "log": 11, "whole, log": 13}.get(name, 10)


def test_ends_that_agree_and_runs_that_raise_give_no_bracket():
    frontier = Frontier(AXES["linear"], "loss < 1", [{"rank": str(i)} for i in range(4)])
    asked = frontier.ask()
    small, large = Result(0.5, "budget", {"loss": 0.5}), Result(2.0, "budget", {"loss": 2.0})
    frontier.tell(asked, [small, small, large, large, small, None, small, large])
    assert {cell.setting["rank"] for cell, _ in frontier.ask()} == {"3"}
    table = frontier.table().set_index("rank")
    assert table["success"].tolist() == ["everywhere", "nowhere", "unknown", "below"]
    assert table["lr.low"].isna().tolist() == [True, True, True, False]
    assert "2 of 4 cells: the same at both ends" in frontier.describe()


def read_table(stdout):
    """The printed table, a line a cell."""
    lines = stdout.splitlines()
    begin = next(i for i, line in enumerate(lines) if " changes along " in line) + 1
    names = lines[begin].split()
    cells = []
    for line in lines[begin + 1 :]:
        if len(line.split()) != len(names):
            break
        cells.append(dict(zip(names, line.split(), strict=True)))
    return pandas.DataFrame(cells).apply(to_numbers)


def to_numbers(column):
    """The numbers of a column of text; the text if it has none."""
    numbers = pandas.to_numeric(column, errors="coerce")
    return column if numbers.isna().all() else numbers


def test_the_largest_stable_rate_is_two_over_the_sharpness_of_the_optimum(here, tmp_path):
    """At the balanced answer of depth L the sharpness is c L σ₁^(2 − 2/L), c twice the scale."""
    D = np.random.default_rng(0).normal(size=(4, 3))
    np.save(tmp_path / "D.npy", D)
    problem = ("problem=file", "problem.path=D.npy", "rank=3", "init=spectral", "init.scale=0.9")
    line = ("lr=tag(log,interval(0.01,1))", "depth=2,3", "loss.scale=0.5,1", "steps=2000")
    success = ("hydra.sweeper.success='outcome == \"converged\"'", "tolerance=1e-7")
    done = here(*FRONTIER, *problem, *line, *success, "hydra.sweeper.resolution=0.01", *MEMORY)
    assert done.returncode == 0, done.stderr
    table = read_table(done.stdout)
    assert len(table) == 4
    top = np.linalg.svd(D, compute_uv=False)[0]
    limit = 2 / (2 * table["loss.scale"] * table["depth"] * top ** (2 - 2 / table["depth"]))
    assert (table["success"] == "below").all()
    assert ((table["lr.low"] <= limit) & (limit <= table["lr.high"])).all()
    np.testing.assert_allclose(table["theory"], limit, rtol=1e-5)
    assert (table["runs"] <= 2 + math.ceil(math.log2(math.log(100) / math.log(1.01)))).all()


def find_critical_step(u, v, y):
    """The step η up to which gradient descent of ½(uv − y)², y ≠ 0, converges for almost all
    starts: min(1/|y|, 8/(s + √(s² − 16yr))), s = u² + v², r = uv − y.

    Let μ = ηy, ρ = ηr and e = 4 + μρ − ηs, of which one step makes
        ρ' = ρ(ρ² + e − 3),  e' = e(1 + ρ² + μρ),
    so that for |μ| < 2 no step changes the sign of e. The second of the two steps is the least η at
    which e = 0; the other one is above 1/|y|.

    Not beyond it, proved: gradient descent converges to the saddle u = v = 0, where e = 4 − μ² > 0,
    or to a minimum, where ρ' = (1 − ηs)ρ + O(ρ²). If e ≤ 0, then ηs ≥ 4 at a minimum, and if
    |μ| > 1, then ηs ≥ 2|μ| > 2. The minimum repels: it is reached by the starts alone that come
    there in finitely many steps, the zeros of polynomials. The saddle is reached from a null set
    (its Hessian has the eigenvalues ±y).

    Up to it, proved here: e > 0 bounds u and v. That almost all of these starts converge is a
    theorem of Liang, Montúfar 2025, Gradient descent with large step sizes: chaos and fractal
    convergence region (arXiv 2509.25351); tested below.
    """
    s, r = u * u + v * v, u * v - y
    return np.minimum(1 / np.abs(y), 8 / (s + np.sqrt(s * s - 16 * y * r)))


def descend(u, v, y, rate, steps):
    """Gradient descent of ½(uv − y)², on arrays; the error uv − y at the end."""
    with np.errstate(all="ignore"):
        for _ in range(steps):
            r = u * v - y
            u, v = u - rate * r * v, v - rate * r * u
        return u * v - y


def test_the_critical_step_is_that_of_iterated_numbers():
    rng = np.random.default_rng(0)
    u, v, y = rng.normal(0, 2, (3, 20_000))
    y = np.where(np.abs(y) < 0.1, 0.1, y)
    critical = find_critical_step(u, v, y)
    below, above = (descend(u, v, y, share * critical, 3000) for share in (0.98, 1.02))
    assert np.mean(np.abs(below) < 1e-6) > 0.995  # the rest takes longer
    assert not np.isnan(below).any()
    assert not (np.abs(above) < 1e-6).any()
    # One step of ρ and e, as above.
    mu, rho = critical * y, critical * (u * v - y)
    e = 4 + mu * rho - critical * (u * u + v * v)
    r = u * v - y
    next_u, next_v = u - critical * r * v, v - critical * r * u
    moved = critical * (next_u * next_v - y)
    size = 1 + critical * (u * u + v * v)
    close = {"atol": 1e-12 * (size**3).max(), "rtol": 1e-9}
    np.testing.assert_allclose(moved, rho * (rho**2 + e - 3), **close)
    next_e = 4 + mu * moved - critical * (next_u**2 + next_v**2)
    np.testing.assert_allclose(next_e, e * (1 + rho**2 + mu * rho), **close)


def test_the_critical_step_of_scalar_factorization(here, tmp_path):
    y = 0.5
    starts = {"a": (2.0, 1.0), "b": (3.0, -1.0), "c": (0.1, 4.0)}
    for name, (u, v) in starts.items():
        np.savez(tmp_path / f"{name}.npz", C=np.array([[u]]), F=np.array([[v]]))
    np.save(tmp_path / "y.npy", np.array([[y]]))
    line = ("problem=file", "problem.path=y.npy", "rank=1", "loss.scale=0.5", "steps=1000")
    paths = ("init=file", "init.path=a.npz,b.npz,c.npz", "lr=interval(0.1,1.5)")
    done = here(*FRONTIER, *line, *paths, "hydra.sweeper.resolution=1e-3", *MEMORY)
    assert done.returncode == 0, done.stderr
    table = read_table(done.stdout).set_index("init.path")
    for name, start in starts.items():
        cell, critical = table.loc[f"{name}.npz"], find_critical_step(*start, y)
        assert cell["lr.low"] - 1e-6 <= critical <= cell["lr.high"] + 1e-6
        assert cell["lr.high"] - cell["lr.low"] <= 1e-3


def test_whole_numbers_are_bisected_in_batches_and_kept_with_the_sweep(here, monkeypatch):
    launched = []
    launch = SearchSweeper.launch

    def count(self, jobs):
        launched.append(len(jobs))
        return launch(self, jobs)

    monkeypatch.setattr(SearchSweeper, "launch", count)
    problem = ("problem=synthetic", "problem.n=12", "problem.m=11", "problem.rank=3,5")
    line = (*FRONTIER, *problem, "rank=interval(1,9)", "optimizer=als", "steps=60", "seed=0,1")
    success = "hydra.sweeper.success='final_relative_error < 1e-3'"
    options = ("tracking.figures=0", "workers=1")
    done = here(*line, success, *options)
    assert done.returncode == 0, done.stderr
    assert launched == [8, 4, 4, 4]
    table = read_table(done.stdout)
    assert table["success"].tolist() == ["above"] * 4
    assert (table["rank.low"] == table["problem.rank"] - 1).all()
    assert (table["rank.high"] == table["problem.rank"]).all()

    client = MlflowClient()
    runs = client.search_runs(["1"])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(runs) == 1 + 20
    kept = pandas.read_csv(client.download_artifacts(parent.info.run_id, "frontier.csv"))
    assert kept[["rank.low", "rank.high"]].equals(table[["rank.low", "rank.high"]])
    figures = {file.path for file in client.list_artifacts(parent.info.run_id, "figures")}
    assert "figures/frontier.png" in figures

    # What is finished is known again by its values, and nothing is solved.
    again = here(*line, success, *options, "resume=true")
    assert again.returncode == 0, again.stderr
    assert read_table(again.stdout).equals(table)
    assert len(client.search_runs(["1"])) == 1 + 20


REFUSED = {
    "rank=1,2": "bisects the interval of one key; given is none",
    "lr=interval(1,2) init.scale=interval(3,4)": "given is lr=interval(1,2) init.scale=interval(",
    "lr=interval(2,1)": "lr=interval(2,1): allowed are two finite ends",
    "lr=tag(log,interval(0,1))": "allowed are ends above 0",
    "lr=interval(1,2) hydra.sweeper.resolution=0": "hydra.sweeper.resolution=0: must be",
    "lr=interval(1,2) hydra.sweeper.success=outcome": "outcome: cannot be read; allowed is",
    "lr=interval(1,2) hydra.sweeper.low=1": "hydra.sweeper.low=1: no such key",
}


@pytest.mark.parametrize("given", REFUSED)
def test_what_cannot_be_bisected_is_refused_before_anything_runs(here, tmp_path, given):
    done = here(*FRONTIER, *given.split(" "))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert REFUSED[given] in line
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_measure_is_refused_with_those_that_there_are(here):
    success = "hydra.sweeper.success='final_los < 1'"
    done = here(*FRONTIER, "lr=interval(0.001,0.01)", "steps=5", success, *MEMORY)
    assert done.returncode == 2
    assert "did you mean final_loss" in done.stderr.splitlines()[-1]
