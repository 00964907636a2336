"""What is factored, as a dataset of MLflow."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from mfgd.config import Point
from mfgd.target import Problem

if TYPE_CHECKING:
    from mlflow.entities import Dataset, DatasetInput

LONGEST = 500
"""Characters of a description."""


def dataset_input(point: Point, problem: Problem) -> DatasetInput:
    """The dataset of a problem as the input of a run."""
    from mlflow.entities import DatasetInput, InputTag

    return DatasetInput(
        _describe_problem(point, problem), [InputTag("mlflow.data.context", "factored")]
    )


def _describe_problem(point: Point, problem: Problem) -> Dataset:
    """The dataset of a problem: a file with the digest of the matrix in it, or the config of a
    generated matrix without its seed."""
    from mlflow.entities import Dataset

    source = problem.source
    if source is not None:
        path = Path(source.path).expanduser()
        return Dataset(
            name=path.name,
            digest=source.digest,
            source_type="local",
            source=json.dumps({"uri": str(path.absolute())}),
            profile=json.dumps({"read": source.summary}, ensure_ascii=False),
        )
    config = {key: value for key, value in point.problem.resolve().items() if key != "seed"}
    content = json.dumps(config, sort_keys=True, default=str)
    n, m = problem.shape
    size = f"{n}×{m}, {int(problem.count)} observed"
    return Dataset(
        name=point.problem.name,
        digest=hashlib.sha256(content.encode()).hexdigest()[:8],
        source_type="generated",
        source=content[:LONGEST],
        profile=json.dumps({"made": size}, ensure_ascii=False),
    )
