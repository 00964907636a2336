"""Broken files of every format are read or refused in one line, and never executed."""

import gzip
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import FILE, READING
from fuzzing import CANARY, broken, cases, harmless
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat
from scipy.sparse import coo_array, save_npz
from test_files import SUFFIXES, save

from mfgd import capacity, problem
from mfgd.types import Refused

FREE = 300_000_000
SMALL = np.array([[1.5, 2.0, -3.0], [4e-9, 5.0, 6e12]])


class Canary:
    """A pickle of it makes a folder where it is loaded."""

    def __reduce__(self):
        import os

        return os.mkdir, (CANARY,)


def make_whole(folder: Path) -> dict[str, bytes]:
    """Name of a file → its bytes, whole; files with pickles among them."""
    for suffix in SUFFIXES:
        save(folder / f"a{suffix}", SMALL)
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(folder / "a.png")
    save_npz(folder / "s.npz", coo_array(SMALL))
    savemat(folder / "s.mat", {"D": coo_array(SMALL).tocsc()}, do_compression=True)
    np.save(folder / "p.npy", np.array([Canary()], dtype=object), allow_pickle=True)
    np.savez(folder / "p.npz", D=np.array([Canary()], dtype=object))
    torch.save({"D": Canary()}, folder / "p.pt")
    (folder / "q.pt").write_bytes(pickle.dumps(Canary()))
    with zipfile.ZipFile(folder / "q.npz", "w") as content:
        content.writestr("D.npy", pickle.dumps(Canary()))
    whole = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    for name, text in TABLES.items():
        whole[name] = text.encode()
    for name in ("a.csv", "a.npy", "u.data"):
        whole[f"{name}.gz"] = gzip.compress(whole[name], mtime=0)
    return whole


TABLES = {
    "names.csv": ",a,b\nx,1,2\ny,3,4\n",
    "decimal.csv": "a;b\n1,5;2,25\n-3,0;1.000,5\n",
    "quoted.csv": '"a","b"\n"1","2"\n"3 ""x""",4\n',
    "blank.txt": "1 2  3\n4 5 6\n# rest\n",
    "u.data": "1\t1\t5\t0\n2\t2\t3\t0\n",
    "ratings.csv": "userId,movieId,rating,timestamp\n1,2,4.5,9\n2,3,1,9\n",
    "ratings.dat": "1::2::3::4\n2::3::4::5\n",
    "r.inter": "user_id:token\titem_id:token\trating:float\n1\t2\t3\n2\t2\t4\n",
}
KEYS = {
    "header": [None, None, True, False],
    "index": [None, None, True, False],
    "separator": [None, None, "comma", "blank", "tab", "", "::", "x", "\x00", "semicolon"],
    "decimal": [None, None, "point", "comma"],
    "missing": [None, None, (), (0,), ("NA", -1.5), ("",)],
    "columns": [None, None, 0, 2, 10**12, (0, 1), ("a",), (-1,), ("user", "item", "rating")],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_whole(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(capacity, "free_memory", lambda: FREE)
    return tmp_path


def read_or_refuse(path: Path, option: str, keys: dict) -> None:
    """Reads a file; a refusal has to be one line that begins with the key."""
    reason = "problem"
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            if option == "file":
                found = problem.file(**FILE | {"path": str(path)} | keys)
            else:
                found = problem.ratings(path=str(path), **READING | keys, heldout=0.0, seed=0)
            assert found.D.numel() > 0
        except Refused as refused:
            reason = str(refused)
    assert reason.startswith("problem")
    assert "\n" not in reason
    told = [f"{w.category.__name__}: {w.message}" for w in warned]
    assert [text for text in told if not text.startswith("Deprecation")] == []


@cases(1830)
@given(data=st.data())
def test_broken_files_are_read_or_refused(data, whole, folder):
    name = data.draw(st.sampled_from(sorted(whole)))
    path = folder / "here" / name
    path.write_bytes(data.draw(broken(whole[name])))
    keys = {}
    for key in data.draw(st.lists(st.sampled_from(sorted(KEYS)), max_size=2, unique=True)):
        keys[key] = data.draw(st.sampled_from(KEYS[key]))
    option = data.draw(st.sampled_from(["file", "file", "ratings"]))
    with harmless(folder):
        read_or_refuse(path, option, keys)
    path.unlink()
