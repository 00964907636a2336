"""What is factored, as a dataset of MLflow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mfgd.point import Point
from mfgd.target import Problem

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

LONGEST = 500
"""Characters of a description."""


def dataset_input(data: Mapping[str, str]) -> DatasetInput:
    """A dataset, as `describe_data` gives it, as the input of a run."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    return DatasetInput(Dataset(**data), [InputTag("mlflow.data.context", "factored")])


def describe_data(point: Point, problem: Problem) -> dict[str, str]:
    """The fields of MLflow's dataset of a problem: a file with the digest of the matrix in it, or
    the config of a generated matrix without its seed."""
    source = problem.source
    if source is not None:
        path = Path(source.path).expanduser()
        return {
            "name": path.name,
            "digest": source.digest,
            "source_type": "local",
            "source": json.dumps({"uri": str(path.absolute())}),
            "profile": json.dumps({"read": source.summary}, ensure_ascii=False),
        }
    config = {key: value for key, value in point.problem.resolve().items() if key != "seed"}
    content = json.dumps(config, sort_keys=True, default=str)
    n, m = problem.shape
    size = f"{n}×{m}, {int(problem.count)} observed"
    return {
        "name": point.problem.name,
        "digest": hashlib.sha256(content.encode()).hexdigest()[:8],
        "source_type": "generated",
        "source": content[:LONGEST],
        "profile": json.dumps({"made": size}, ensure_ascii=False),
    }
