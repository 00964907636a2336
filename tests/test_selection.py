import pandas
import pytest

from mfgd import compare
from mfgd.types import Refused


@pytest.fixture
def runs():
    return pandas.DataFrame(
        {
            "run_id": list("abcde"),
            "params.rank": ["10", "2", "5", "10", "2"],
            "params.lr": ["0.001", "1e-05", "0.001", "0.01", "0.01"],
            "params.loss": ["squared", "huber", "huber", "squared", "squared"],
            "params.init.scale": ["0.1", "0.1", "1.0", "1.0", "1.0"],
            "metrics.loss": [1.0, 2.0, 3.0, 4.0, float("nan")],
            "metrics.sigma.1": [5.0, 4.0, 3.0, 2.0, float("nan")],
            "metrics.final_relative_error": [0.5, 0.25, 0.75, 1e-3, 2.0],
            "tags.outcome": ["converged", "budget", "converged", "diverged", "error"],
        }
    )


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ('rank == 10 and outcome != "diverged"', "a"),
        ("rank==10 or rank == 5", "acd"),
        ("2 < rank <= 10", "acd"),
        ("lr < 1e-4", "b"),
        ("lr in [0.001, 1e-5]", "abc"),
        ("not (lr > 1.0e-4)", "b"),
        ('loss == "huber"', "bc"),
        ("loss in ('huber', 'other')", "bc"),
        ('"huber" != loss and rank > 2 or run_id == "e"', "ade"),
        ("init.scale == 1 and sigma.1 > 2.5", "c"),
        ("`sigma.1` >= 5", "a"),
        ("metrics.loss > 2", "cde"),
        ("final_relative_error < 0.6", "ab"),
        ('outcome not in ["diverged", "error"]', "abc"),
    ],
)
def test_where(runs, condition, found):
    """Numbers are compared as numbers; d diverged and e raised, whatever their last error was."""
    assert "".join(compare.where(runs, condition)["run_id"]) == found


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("rank ==", "rank ==: cannot be read; allowed is, for example, rank == 10"),
        ("rank = 10", "rank = 10: cannot be read"),
        ("rank", "rank: cannot be read"),
        ("loss > 1", "loss > 1: loss: params.loss and metrics.loss are called so"),
        ("rnak == 1", "rnak == 1: rnak: no such column; did you mean rank"),
        ("__import__('os')", "__import__('os'): __import__: no such column"),
    ],
)
def test_conditions_that_are_refused(runs, condition, message):
    with pytest.raises(Refused) as refused:
        compare.where(runs, condition)
    assert str(refused.value).startswith(message)


def test_best_first(runs):
    assert "".join(compare.best(runs)["run_id"]) == "bacde"
    assert "".join(compare.best(runs, "rank")["run_id"]) == "becad"
    assert "".join(compare.best(runs, "outcome")["run_id"]) == "bacde"


def test_runs_of_equal_draws_are_one_line():
    runs = pandas.DataFrame(
        {
            "run_id": list("abcd"),
            "params.rank": ["2", "2", "2", "2"],
            "params.seed": ["0", "1", "2", "3"],
            "tags.draw.init": ["same", "same", "other", None],
            "metrics.final_relative_error": [0.1, 0.1, 0.2, 0.3],
        }
    )
    once = compare.drop_repeats(runs)
    assert once["run_id"].tolist() == ["a", "c", "d"]
    assert once["equal"].tolist() == [2, 1, 1]
    lines = [line.split() for line in compare.table(runs).splitlines()]
    assert [line[-1] for line in lines] == ["id", "a", "c", "d"]
