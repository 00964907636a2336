"""What fits into memory: of files, of problems, and of this machine."""

import gzip
import io
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from scipy.io import mmwrite, savemat
from scipy.sparse import coo_array, save_npz
from test_files import file, save

from mfgd import capacity
from mfgd.types import Refused


def _npy(shape, dtype="<f8"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return file.getvalue() + b"few bytes"


def _npz(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("D.npy", _npy((30_000, 30_000)))


def _hdf5(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("D", shape=(30_000, 30_000), dtype="f8", chunks=(100, 100))


def _parquet(path):
    column = pyarrow.array(np.zeros(2_000_000))
    pyarrow.parquet.write_table(pyarrow.table({"a": column, "b": column}), path)


FEW_OF_MANY = coo_array(([1.0], ([5], [7])), shape=(30_000, 30_000))
COORDINATES = "%%MatrixMarket matrix coordinate real general\n30 30 900000000\n1 1 1\n"
VAST = {
    "a.npy": (_npy((30_000, 30_000)), "30000×30000 entries take 7.2 GB"),
    "b.npz": (_npz, "30000×30000 entries take 7.2 GB"),
    "c.npz": (lambda path: save_npz(path, FEW_OF_MANY), "problem.unlisted=missing keeps the"),
    "d.npy.gz": (gzip.compress(bytes(200_000_000), 1), "do not fit into memory once they are"),
    "e.pt": (
        lambda path: torch.save(torch.zeros(1, dtype=torch.float64).expand(30_000, 30_000), path),
        "30000×30000 entries take 7.2 GB",
    ),
    "f.pt": (
        lambda path: torch.save(torch.zeros(1).expand(30_000, 30_000), path),
        "30000×30000 entries take 7.2 GB",
    ),
    "g.mtx": (b"%%MatrixMarket matrix array real general\n30000 30000\n1\n", "30000×30000 entries"),
    "h.mtx": (COORDINATES.encode(), "900000000 entries take"),
    "i.mtx": (lambda path: mmwrite(path, FEW_OF_MANY), "30000×30000 entries take 7.2 GB"),
    "j.mat": (
        lambda path: savemat(path, {"D": np.zeros((7000, 7000), np.int8)}, do_compression=True),
        "7000×7000 entries take 49 MB",
    ),
    "k.mat": (lambda path: savemat(path, {"D": FEW_OF_MANY.tocsc()}), "30000×30000 entries"),
    "l.h5": (_hdf5, "30000×30000 entries take 7.2 GB"),
    "m.png": (lambda path: Image.new("L", (3000, 3000)).save(path), "3000×3000 entries take 72 MB"),
    "n.parquet": (_parquet, "2000000×2"),
}


@pytest.mark.parametrize("name", VAST)
def test_a_shape_that_cannot_fit_is_refused_before_it_is_allocated(name, tmp_path, monkeypatch):
    make, reason = VAST[name]
    path = tmp_path / name
    make(path) if callable(make) else path.write_bytes(make)
    assert path.stat().st_size < 1_000_000
    free = 3_000_000 if name == "n.parquet" else 40_000_000
    monkeypatch.setattr(capacity, "free_memory", lambda: free)
    tracemalloc.start()
    try:
        with pytest.raises(Refused, match=rf"^problem\.path={path}: .*{reason}"):
            file(path=str(path))
        assert tracemalloc.get_traced_memory()[1] < 150_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".mat", ".h5", ".mtx"])
def test_what_just_fits_is_read(suffix, tmp_path, monkeypatch):
    path, numbers = tmp_path / f"D{suffix}", np.arange(1200.0).reshape(40, 30) % 7
    save(path, numbers)
    free = max(8 * 40 * 30, path.stat().st_size)
    monkeypatch.setattr(capacity, "free_memory", lambda: free)
    np.testing.assert_array_equal(file(path=str(path)).D.numpy(), numbers)
    monkeypatch.setattr(capacity, "free_memory", lambda: 8 * 40 * 30 - 1)
    with pytest.raises(Refused, match=r"this machine has 0\.0096 MB free"):
        file(path=str(path))


def test_what_is_free_is_what_the_machine_and_the_cgroups_leave(tmp_path, monkeypatch):
    meminfo = dict(line.split()[:2] for line in Path("/proc/meminfo").read_text().splitlines())
    before = capacity.free_memory()
    assert 0 < before <= 1024 * (int(meminfo["MemTotal:"]) + int(meminfo["SwapTotal:"]))
    group = tmp_path / "session" / "job"
    group.mkdir(parents=True)
    for folder, limit in ((group, "max"), (group.parent, "50000000")):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.stat").write_text("anon 20000000\nfile 25000000\n")
    monkeypatch.setattr(capacity, "CGROUPS", tmp_path)
    monkeypatch.setattr(capacity, "OWN_CGROUPS", tmp_path / "cgroup")
    (tmp_path / "cgroup").write_text("0::/session/job\n")
    assert capacity.free_memory() == 30_000_000  # files can be let go
    older = tmp_path / "memory" / "session"
    older.mkdir(parents=True)
    (older / "memory.limit_in_bytes").write_text("10000000\n")
    (older / "memory.stat").write_text("total_rss 1000000\n")
    (tmp_path / "cgroup").write_text("9:name=systemd:/\n4:cpuset,memory:/session\n0::/\n")
    assert capacity.free_memory() == 9_000_000
