"""The files of a run: config.yaml, trajectory.parquet, matrices.safetensors and figures/."""

from __future__ import annotations

import io
import json
import traceback
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save
from torch import Tensor

from mfgd.init import factor_names
from mfgd.point import Point
from mfgd.record import Row
from mfgd.replicates import Ensemble
from mfgd.sparse import ARRAYS, compressed_rows
from mfgd.target import Problem

if TYPE_CHECKING:
    import pandas

CONFIG, TRAJECTORY, MATRICES = "config.yaml", "trajectory.parquet", "matrices.safetensors"
REPLICATES, STACKED = "replicates.parquet", "replicates.safetensors"
SMALL = 65_536
"""A generated D is kept with its run; a given D is kept if it has at most so many entries."""


class DrawingError(Exception):
    """A figure function of the user raised; the cause is its error."""


class Run(NamedTuple):
    """A tracked run, read back."""

    config: DictConfig
    trajectory: pandas.DataFrame
    """One line a record: step, seconds and the measures."""
    matrices: dict[str, Tensor]
    """C and F (W1 … WL beyond depth 2), bit for bit, and D if it was kept: NaN for an entry that is
    not observed, a sparse D in compressed rows. With record.matrices=true records.C and records.F,
    (records, n, k) and (records, k, m). Of replicates: those of the median one."""


class Replicates(NamedTuple):
    """The replicates of a tracked run, read back."""

    table: pandas.DataFrame
    """One line a replicate: seed, outcome, last value of each metric, hashes of what was drawn."""
    factors: dict[str, Tensor]
    """C and F (W1 … WL beyond depth 2), (replicates, n, k) … (replicates, k, m); empty unless the
    run says replicates_kept=all."""


def write_row(folder: Path, row: Row, problem: Problem) -> None:
    """Writes the trajectory and the matrices of a run."""
    import pyarrow
    from pyarrow import parquet

    columns = row.trajectory | {"step": row.trajectory["step"].astype("int64")}
    # A dictionary of numbers that all differ, and their extremes, are longer than the numbers.
    plain = {"use_dictionary": False, "write_statistics": False}
    parquet.write_table(pyarrow.table(columns), folder / TRAJECTORY, **plain)
    named = zip(factor_names(len(row.factors)), row.factors, strict=True)
    matrices = {name: W.contiguous() for name, W in named}
    matrices |= {
        f"records.{name}": W
        for name, W in zip(factor_names(len(row.recorded)), row.recorded, strict=True)
    }
    matrices |= _kept_target(problem, row.factors[0].dtype)
    # safetensors.torch.save_file makes a file that nobody else can read, whatever the umask.
    (folder / MATRICES).write_bytes(save(matrices))
    if isinstance(row, Ensemble):
        parquet.write_table(pyarrow.table(row.table), folder / REPLICATES)
        if row.stacked:
            (folder / STACKED).write_bytes(save(row.stacked))


def _kept_target(problem: Problem, dtype: torch.dtype) -> dict[str, Tensor]:
    """The arrays of D that a run keeps."""
    if not problem.generated and problem.D.numel() > SMALL:
        return {}
    return problem.observation.to(dtype, "cpu").arrays()


def write_config(folder: Path, point: Point) -> None:
    """Writes the resolved config of a run."""
    content = [_format_entry(json.dumps({key: item})) for key, item in point.resolved.items()]
    (folder / CONFIG).write_text("".join(content), encoding="utf-8")


@lru_cache(maxsize=1024)
def _format_entry(entry: str) -> str:
    """An entry of a config, given as JSON, as YAML; most entries are the same in many runs."""
    dumper = yaml.CSafeDumper
    return str(yaml.dump(json.loads(entry), Dumper=dumper, sort_keys=False, allow_unicode=True))


def write_traceback(folder: Path, error: Exception) -> None:
    """Writes the traceback of a run that raised."""
    (folder / "traceback.txt").write_text("".join(traceback.format_exception(error)))


def draw_own_figures(point: Point, row: Row, problem: Problem) -> dict[str, bytes]:
    """The figures of the user's functions, name → PNG.

    Raises:
        DrawingError: a function raised, or returned no figure that can be saved.
    """
    drawn = {}
    for name, component in point.figures:
        content = io.BytesIO()
        try:
            component.bind()(row, problem).savefig(content, format="png")
        except Exception as error:
            raise DrawingError(f"figures.{name}={component.target}: {error!r}") from error
        drawn[name] = content.getvalue()
    return drawn


def write_figures(
    folder: Path, point: Point, row: Row, problem: Problem, own: dict[str, bytes]
) -> None:
    """Draws a run into figures/, beside the figures that the user's functions drew."""
    from mfgd import plots

    place = folder / "figures"
    place.mkdir(exist_ok=True)
    title = point.label.title if point.label else ""
    for name, figure in plots.figures(row, problem, title).items():
        figure.savefig(place / f"{name}.png")
    for name, content in own.items():
        (place / f"{name}.png").write_bytes(content)


def read_run(folder: Path) -> Run:
    """Config, trajectory and matrices from the files of a run."""
    import pandas

    config = OmegaConf.load(folder / CONFIG)
    assert isinstance(config, DictConfig)
    # A copy: what the file is mapped to would change with the file.
    matrices = {name: W.clone() for name, W in load_file(folder / MATRICES).items()}
    if ARRAYS[0] in matrices:
        m = matrices[factor_names(config.depth)[-1]].shape[1]
        starts, columns, values = (matrices.pop(name) for name in ARRAYS)
        matrices["D"] = compressed_rows(starts, columns, values, len(starts) - 1, m)
    return Run(config, pandas.read_parquet(folder / TRAJECTORY), matrices)


def read_replicates(folder: Path) -> Replicates:
    """What the files of a run hold of its replicates."""
    import pandas

    file, factors = folder / STACKED, {}
    if file.exists():
        factors = {name: W.clone() for name, W in load_file(file).items()}
    return Replicates(pandas.read_parquet(folder / REPLICATES), factors)
