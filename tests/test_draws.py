"""Random streams, orthonormal matrices, and long draws in pieces."""

import numpy as np
import pytest
import torch
from cases import synthetic
from numpy.testing import assert_allclose, assert_array_equal

from mfgd import draws, whole


def test_streams_are_reproducible_and_independent():
    def draw(name: str, seed: int) -> tuple[float, ...]:
        return tuple(torch.rand(4, generator=draws.stream(name, seed)).tolist())

    keys = [
        (name, seed)
        for name in ("init", "problem data", "problem noise", "problem mask")
        for seed in range(50)
    ]
    assert len({draw(*key) for key in keys}) == len(keys)
    assert [draw(*key) for key in keys] == [draw(*key) for key in keys]
    samples = np.array(
        [torch.randn(500, generator=draws.stream(*key)).numpy() for key in keys[:40]]
    )
    assert abs(np.corrcoef(samples) - np.eye(40)).max() < 5 / np.sqrt(500)


@pytest.mark.parametrize(("n", "k"), [(6, 1), (6, 4), (6, 6)])
def test_orthonormal_columns(n, k):
    Q = draws.orthonormal(n, k, draws.stream("test", 0))
    assert_allclose(Q.mT @ Q, np.eye(k), atol=1e-14)


def test_orthonormal_is_haar():
    """Under the Haar measure E tr Q = 0 and E (tr Q)² = 1; QR alone would leave other signs."""
    generator = draws.stream("haar", 0)
    traces = torch.stack([draws.orthonormal(3, 3, generator).trace() for _ in range(4000)]).numpy()
    assert abs(traces.mean()) < 4.5 / np.sqrt(4000)
    assert abs((traces**2).mean() - 1) < 4.5 * np.sqrt(2 / 4000)


@pytest.mark.parametrize("piece", [16, 64, 560, 592])
def test_a_draw_in_pieces_is_the_draw_in_one(piece, monkeypatch):
    keys = {"noise": 0.1, "observed": 0.4, "outliers": 0.2, "heldout": 0.3}
    once = synthetic(**keys)
    for module in (draws, whole):
        monkeypatch.setattr(module, "PIECE", piece)
    pieces = synthetic(**keys)
    assert_array_equal(pieces.D, once.D)
    assert_array_equal(pieces.heldout.with_nan(), once.heldout.with_nan())
    assert pieces.draws == once.draws
