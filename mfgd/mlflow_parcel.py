"""A run, packed for MLflow: it can be sent at once, or kept on the disk and sent later."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mfgd import artifacts
from mfgd.mlflow_dataset import describe_data
from mfgd.point import Point
from mfgd.record import Row
from mfgd.target import Problem
from mfgd.tracked import (
    MetricPoint,
    format_params,
    mirror_numbers,
    name_run,
    outcome_tags,
    run_tags,
    select_points,
)

CONTENT, FILES, IMAGES = "run.json", "artifacts", "images"
"""The file and the folders of a parcel on the disk."""


class Image(NamedTuple):
    """An image of a series."""

    name: str
    step: int
    pixels: np.ndarray
    """(height, width, 3) uint8."""


@dataclass(frozen=True)
class Parcel:
    """What MLflow is told of a run."""

    name: str
    status: str
    start: int
    """Milliseconds, as `end`."""
    end: int
    tags: dict[str, str]
    outcome: dict[str, str]
    """The tags that say how the run ended; they are there once the results are."""
    params: dict[str, str]
    points: list[MetricPoint]
    loss: float
    """At the end, NaN if the run raised."""
    data: dict[str, str] | None
    """The dataset, as `describe_data` gives it; None if the run raised."""
    keeps_data: bool
    """Whether the dataset is logged to the run too, and not only to its sweep."""
    write_files: Callable[[Path], None]
    """Writes the artifacts into a folder."""
    images: Sequence[Image] = ()


def pack_row(
    point: Point,
    row: Row,
    problem: Problem,
    tags: Mapping[str, str],
    *,
    drawn: bool,
    keeps_data: bool,
    most: int,
) -> Parcel:
    """Packs a run.

    Args:
        point: the config of the run.
        row: what the run left behind.
        problem: what was factored.
        tags: further tags.
        drawn: whether the run has figures and images.
        keeps_data: whether the run keeps which file was read.
        most: how many metric points may be logged.

    Raises:
        DrawingError: a figure function of the user raised.
    """
    own = artifacts.draw_own_figures(point, row, problem) if drawn else {}
    seconds = float(row.trajectory["seconds"][-1])
    start = int((time.time() - seconds) * 1000)
    points = [*select_points(row, point.tolerance, start, most)]
    points += mirror_numbers(point, points, start)

    def write_files(folder: Path) -> None:
        artifacts.write_config(folder, point)
        artifacts.write_row(folder, row, problem)
        if drawn:
            artifacts.write_figures(folder, point, row, problem, own)

    return Parcel(
        name=name_run(point, row),
        status="FINISHED",
        start=start,
        end=start + math.ceil(1000 * seconds),
        tags={**tags, **run_tags(point, row), **_colour(point)},
        outcome=outcome_tags(row),
        params=format_params(point, problem),
        points=points,
        loss=float(row.trajectory["loss"][-1]),
        data=describe_data(point, problem),
        keeps_data=keeps_data and problem.source is not None,
        write_files=write_files,
        images=_draw_images(row, problem) if drawn else (),
    )


def pack_error(point: Point, error: Exception, tags: Mapping[str, str]) -> Parcel:
    """Packs a run that raised; see `pack_row`."""

    def write_files(folder: Path) -> None:
        artifacts.write_config(folder, point)
        artifacts.write_traceback(folder, error)

    now = int(time.time() * 1000)
    return Parcel(
        name=name_run(point, error),
        status="FAILED",
        start=now,
        end=now,
        tags={**tags, **run_tags(point, error), **_colour(point)},
        outcome=outcome_tags(error),
        params=format_params(point, None),
        points=[],
        loss=math.nan,
        data=None,
        keeps_data=False,
        write_files=write_files,
    )


def _colour(point: Point) -> dict[str, str]:
    return {"mlflow.runColor": point.label.colour} if point.label is not None else {}


def _draw_images(row: Row, problem: Problem) -> list[Image]:
    from mfgd.heatmaps import pictures

    return [
        Image(name, step, pixels)
        for step, factors in row.snapshots
        for name, pixels in pictures(problem, factors).items()
    ]


def write_parcel(folder: Path, parcel: Parcel) -> None:
    """Writes a parcel into a folder of its own, which is made."""
    from PIL import Image as Picture

    (folder / FILES).mkdir(parents=True)
    parcel.write_files(folder / FILES)
    content: dict[str, Any] = dict(vars(parcel))
    del content["write_files"], content["images"]
    for image in parcel.images:
        place = folder / IMAGES / image.name
        place.mkdir(parents=True, exist_ok=True)
        Picture.fromarray(image.pixels).save(place / f"{image.step}.png")
    (folder / CONTENT).write_text(json.dumps(content), encoding="utf-8")


def read_parcel(folder: Path) -> Parcel:
    """The parcel in a folder."""
    from PIL import Image as Picture

    content = json.loads((folder / CONTENT).read_text(encoding="utf-8"))
    content["points"] = [MetricPoint(*values) for values in content["points"]]
    images = []
    for file in sorted((folder / IMAGES).glob("*/*.png"), key=lambda file: int(file.stem)):
        with Picture.open(file) as picture:
            images.append(Image(file.parent.name, int(file.stem), np.asarray(picture)))
    copy = partial(shutil.copytree, folder / FILES, dirs_exist_ok=True)
    return Parcel(**content, write_files=copy, images=images)
