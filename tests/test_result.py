"""What a sweeper is told of a run."""

import math
import pickle

from mfgd.result import Result


def test_a_result_keeps_what_it_is_told():
    values = {"loss": 0.5, "sigma.1": math.inf, "own metric": -1.0}
    result = pickle.loads(pickle.dumps(Result(0.25, "converged", values)))
    assert (result, result.outcome, result.values) == (0.25, "converged", values)
    assert Result(0.25, "error", {}).values == {}
