"""The only door to MLflow, both ways: write runs, read runs."""

from __future__ import annotations

import getpass
import logging
import math
import os
import random
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import yaml
from annotated_types import Ge, MinLen
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor

from mfgd.config import Point
from mfgd.init import factor_names
from mfgd.problem import Problem
from mfgd.record import Row
from mfgd.sparse import compressed
from mfgd.types import Count, Factors, Refused

if TYPE_CHECKING:
    import pandas
    from mlflow import MlflowClient

T = TypeVar("T")
SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https")
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""What MLflow would do for every run of a thousand: report its use, print two lines, draw bars."""
for _name, _value in QUIET.items():
    os.environ.setdefault(
        _name, _value
    )  # it looks when it is imported, here or in a process that starts from this one
REQUEST = {"metrics": 1000, "params": 100}
"""What MLflow takes in one request."""
CURVES = ("loss", "relative_error")
"""What a run of a large sweep has a curve of."""
SMALL = 65_536
"""A matrix D of up to so many entries is kept with each run, as one that was generated always is."""


COMPRESSED = "D.row_starts", "D.columns", "D.values"
"""The names under which the parts of a sparse D are kept."""


class Run(NamedTuple):
    """A tracked run, read back."""

    config: DictConfig
    trajectory: pandas.DataFrame
    """One line a record: step, seconds and the measures."""
    matrices: dict[str, Tensor]
    """C and F (W1 … WL beyond depth 2), bit for bit, and D where it was kept, with NaN where not observed; a sparse
    one in compressed rows."""


def store(
    *,
    uri: str | None,
    experiment: Annotated[str, MinLen(1)],
    figures: bool | Annotated[int, Ge(0)],
    points: Count,
) -> Store:
    """Where runs are tracked.

    Args:
        uri: a database (sqlite, postgresql, mysql, mssql) or a tracking server (http, https); None: the one in
            MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the working directory.
        experiment: name of the MLflow experiment; made where there is none.
        figures: draw each run, its figures and its matrices as image series: of a sweep of up to so many runs, always
            (true) or never (false).
        points: how many metric points a sweep logs in all. Where they do not suffice for every record, a run logs the
            last value of each measure, and loss and relative_error at records spread evenly over the run, the first and
            the last among them. Its trajectory.parquet has everything.
    """
    return Store(_place(uri), experiment, math.inf if figures is True else int(figures), points)


class Store:
    """An MLflow experiment that runs are written to. Nothing is written before `open`."""

    def __init__(self, uri: str, experiment: str, figures: float, points: int) -> None:
        self.uri, self.experiment, self.figures, self.points = uri, experiment, figures, points
        self.parent: str | None = None
        self.expected = 0
        """How many runs are known to come."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "client"}

    @cached_property
    def client(self) -> MlflowClient:
        """The connection; each process has its own."""
        return client(self.uri, writing=True)

    def open(self) -> None:
        """Connects, and makes the experiment if there is none.

        Raises:
            Refused: a URI that MLflow does not support, cannot be reached or cannot be written to.
        """
        from mlflow.exceptions import MlflowException

        try:
            known = self.client.get_experiment_by_name(self.experiment)
            if known is not None and known.lifecycle_stage != "active":
                raise Refused(
                    f"tracking.experiment={self.experiment}: was deleted; allowed is a name not in use"
                )
            local = urlsplit(self.uri).scheme not in ("http", "https")
            if known is None and local and not os.access(Path.cwd(), os.W_OK):
                raise Refused(
                    f"{Path.cwd()}: cannot be written to; allowed is a writable folder for mlartifacts/"
                )
            place = (Path.cwd() / "mlartifacts" / self.experiment).as_uri() if local else None
            self.experiment_id = (
                known.experiment_id
                if known
                else self.client.create_experiment(self.experiment, place)
            )
        except MlflowException as error:
            raise Refused(
                f"tracking.uri={_public(self.uri)}: {str(error).splitlines()[0]}"
            ) from None
        self.tags = _tags()

    def begin(self, overrides: Sequence[str]) -> None:
        """Starts the parent run of a sweep; what is written from now on are its children."""
        tags = self.tags | {"overrides": " ".join(overrides)}
        name = f"sweep {time.strftime('%Y-%m-%d %H:%M:%S')}"
        self.parent = self.client.create_run(
            self.experiment_id, tags=tags, run_name=name
        ).info.run_id

    def write(self, point: Point, result: Row | Exception, problem: Problem | None) -> str:
        """Writes one run, params, tags, metrics and artifacts, or a FAILED one with the traceback; its run id."""
        failed = isinstance(result, Exception)
        seconds = 0.0 if isinstance(result, Exception) else float(result.trajectory["seconds"][-1])
        start = int((time.time() - seconds) * 1000)
        tags = self.tags | {
            "fingerprint": point.fingerprint,
            "overrides": " ".join(point.overrides),
        }
        tags |= (
            {"outcome": "error"}
            if isinstance(result, Exception)
            else {"outcome": result.outcome} | result.tags
        )
        if self.parent:
            tags["mlflow.parentRunId"] = self.parent
        name = (
            " ".join(o for o in point.overrides if not o.startswith("experiment="))
            or point.choices["problem"]
        )
        created = _patiently(
            partial(self.client.create_run, self.experiment_id, start, tags, name[:250])
        )
        info = created.info
        status = "FAILED"
        try:
            self._log(info, point, result, problem, start)
            status = "FAILED" if failed else "FINISHED"
        finally:
            end = start + math.ceil(1000 * seconds)
            _patiently(partial(self.client.set_terminated, info.run_id, status, end_time=end))
        return info.run_id

    def _log(
        self, info: Any, point: Point, result: Row | Exception, problem: Problem | None, start: int
    ) -> None:
        from mlflow.entities import Metric, Param

        metrics = [] if isinstance(result, Exception) else self._metrics(point, result, start)
        entries: dict[str, list[Any]] = {
            "params": [Param(key, _text(value)) for key, value in point.params().items()],
            "metrics": [Metric(*values) for values in metrics],
        }
        for i in range(max(math.ceil(len(entries[kind]) / REQUEST[kind]) for kind in entries)):
            lot: dict[str, Any] = {
                kind: entries[kind][i * most : (i + 1) * most] for kind, most in REQUEST.items()
            }
            _patiently(partial(self.client.log_batch, info.run_id, **lot))
        drawn = self.expected <= self.figures
        with self._artifacts(info) as folder:
            content = yaml.dump(
                point.resolved, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True
            )
            (folder / "config.yaml").write_text(content, encoding="utf-8")
            if isinstance(result, Exception):
                (folder / "traceback.txt").write_text("".join(traceback.format_exception(result)))
            else:
                assert problem is not None
                _files(folder, result, problem, drawn)
        if drawn and not isinstance(result, Exception):
            self._images(info.run_id, result, problem, start)

    def _metrics(self, point: Point, row: Row, start: int) -> Iterator[tuple[str, float, int, int]]:
        """Name, value, time in milliseconds and step of every point that is logged."""
        times = (start + 1000 * row.trajectory["seconds"]).astype(int)
        steps = row.trajectory["step"].astype(int)
        # The record at which a run was found diverged stays in the trajectory: a chart would show nothing else.
        shown = len(steps) - (row.outcome == "diverged")
        series = {
            name: values
            for name, values in row.trajectory.items()
            if name not in ("step", "seconds") and not np.isnan(values).all()
        }
        share = self.points // max(self.expected, 1)
        few = share < shown * len(series)
        spread = min(shown, max(2, (share - len(series)) // len(CURVES)))
        for name, values in series.items():
            count = shown if not few else spread if name in CURVES else 1
            if name.startswith("theory.") and (values == values[0]).all():
                count = min(count, 2)  # the ends of a straight line
            kept = np.unique(np.linspace(shown - 1, 0, count).round().astype(int))
            columns = (column[kept].tolist() for column in (values, times, steps))
            yield from zip([name] * len(kept), *columns, strict=True)
        for name, value in row.summary(point.tolerance).items():
            yield name, value, int(times[-1]), 0  # one point at step 0 is drawn as a bar

    @contextmanager
    def _artifacts(self, info: Any) -> Iterator[Path]:
        """A folder whose files become the run's artifacts: their own place where that is on this machine."""
        if folder := _folder(info):
            folder.mkdir(parents=True, exist_ok=True)
            yield folder
            return
        with tempfile.TemporaryDirectory(prefix="mfgd-") as name:
            yield Path(name)
            self.client.log_artifacts(info.run_id, name)

    def _images(self, run_id: str, row: Row, problem: Problem | None, start: int) -> None:
        from mfgd import plots

        assert problem is not None
        for step, factors in row.snapshots:
            for name, picture in plots.pictures(problem, factors).items():
                self.client.log_image(
                    run_id, picture, key=name, step=step, timestamp=start, synchronous=True
                )

    def finish(self, status: str, unfinished: Sequence[Point] = ()) -> pandas.DataFrame:
        """Ends the sweep's own run, with the table and the overview figure of its children, and what was not run.

        Args:
            status: FINISHED, FAILED or KILLED.
            unfinished: points that were asked for and not run; unfinished.txt keeps their overrides, one a line.

        Returns:
            Its children, as `load_runs` gives them.
        """
        from mfgd import plots

        assert self.parent is not None
        try:
            begun = "attributes.status = 'RUNNING' and " + _children(self.parent)
            for run in self.client.search_runs(
                [self.experiment_id], begun
            ):  # by a process that died
                self.client.set_terminated(run.info.run_id, "KILLED")
            runs = load_runs(parent=self.parent, experiment=self.experiment, uri=self.uri)
            counts = dict(runs["tags.outcome"].value_counts()) if len(runs) else {}
            with self._artifacts(self.client.get_run(self.parent).info) as folder:
                if unfinished:
                    counts["unfinished"] = len(unfinished)
                    lines = "".join(f"{' '.join(point.overrides)}\n" for point in unfinished)
                    (folder / "unfinished.txt").write_text(lines, encoding="utf-8")
                if len(runs):
                    runs.to_csv(folder / "summary.csv", index=False)
                    (folder / "figures").mkdir()
                    plots.overview(runs).savefig(folder / "figures" / "overview.png")
            for outcome, count in counts.items():
                self.client.log_metric(self.parent, f"runs.{outcome}", count)
        finally:
            self.client.set_terminated(self.parent, status)
        return runs

    @property
    def ui(self) -> str:
        """How to look at the runs in a browser: the table of runs, which is not where the UI opens by itself."""
        page = f"#/experiments/{self.experiment_id}/runs"
        if self.uri.startswith("http"):
            return f"{_public(self.uri).rstrip('/')}/{page}"
        return f"mlflow ui --backend-store-uri {_public(self.uri)}  and open  http://127.0.0.1:5000/{page}"

    def runs(self, run_ids: Sequence[str]) -> pandas.DataFrame:
        """The runs of these ids, as `load_runs` gives them."""
        return _lines([self.client.get_run(run_id) for run_id in run_ids])


def _folder(info: Any) -> Path | None:
    """Where a run's artifacts lie, if that is on this machine."""
    place = urlsplit(info.artifact_uri)
    return Path(url2pathname(place.path)) if place.scheme == "file" and not place.netloc else None


def _children(parent: str) -> str:
    return f"tags.`mlflow.parentRunId` = '{parent}'"


def _patiently(request: Callable[[], T]) -> T:
    """The request again while another process writes to the database: SQLite turns down whom it cannot queue."""
    from mlflow.exceptions import MlflowException

    for pause in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0):
        try:
            return request()
        except MlflowException as error:
            if "database is locked" not in str(error):
                raise
            time.sleep(pause * (1 + random.random()))
    return request()


def client(uri: str | None = None, *, writing: bool = False) -> MlflowClient:
    """The MLflow client of a tracking URI, given, in MLFLOW_TRACKING_URI, or the default, known to answer.

    Args:
        uri: of a database or a tracking server.
        writing: set a SQLite file up where there is none.

    Raises:
        Refused: an unsupported URI, or one that cannot be reached, read or (to write) written to.
    """
    uri = _place(uri)
    name = f"tracking.uri={_public(uri)}"
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme not in SCHEMES:
        raise Refused(f"{name}: not supported; allowed are {', '.join(SCHEMES)} URIs")
    if scheme.startswith("http"):
        _probe_server(uri, name)
    else:
        uri = _probe_database(uri, name, writing)
        _trust_the_disk()
    with _quiet():
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        made = MlflowClient(uri)
        try:
            made.search_experiments(max_results=1)  # a new database is set up here
        except MlflowException as error:
            raise Refused(f"{name}: {str(error).splitlines()[0]}") from None
    return made


def _probe_server(uri: str, name: str) -> None:
    """MLflow itself would try again for minutes."""
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=5)
    except requests.RequestException as error:
        raise Refused(f"{name}: no tracking server answers ({type(error).__name__})") from None


def _probe_database(uri: str, name: str, writing: bool) -> str:
    """The URI with a SQLite file's whole path: MLflow keeps a URI's connection when the working directory changes."""
    import sqlalchemy

    try:
        url = sqlalchemy.make_url(uri)
        if url.get_backend_name() == "sqlite" and url.database:
            file = Path(url.database).resolve()
            url = url.set(database=str(file))
            if writing and not os.access(file if file.exists() else file.parent, os.W_OK):
                raise Refused(
                    f"{name}: {file} cannot be written to; allowed is a file in a writable folder"
                )
            if not writing and not file.exists():
                raise Refused(
                    f"{name}: no such file; allowed is a database that holds tracked runs"
                )
        engine = sqlalchemy.create_engine(url)
        with engine.connect() as connection:
            if url.get_backend_name() == "sqlite":
                connection.exec_driver_sql("PRAGMA schema_version")
                if writing:  # once for the file: readers and a writer do not wait for each other, and a commit is cheap
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        engine.dispose()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        raise Refused(f"{name}: {str(error).splitlines()[0]}") from None
    return url.render_as_string(hide_password=False)


@cache
def _trust_the_disk() -> None:
    """SQLite does not wait for the disk at each commit: a power cut may lose the last runs, and harms no other."""
    import sqlalchemy

    @sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, "connect")
    def relax(connection: Any, record: Any) -> None:
        if "sqlite" in type(connection).__module__:
            connection.execute("PRAGMA synchronous=NORMAL")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the notes of a database's set-up off the terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)


def _place(uri: str | None) -> str:
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


def _public(uri: str) -> str:
    parts = urlsplit(uri)
    return uri if parts.password is None else uri.replace(f":{parts.password}@", ":***@")


def _text(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 6000 else text[:5997] + "..."


@cache
def _tags() -> dict[str, str]:
    """What every run of this process has in common."""
    commit = _git("rev-parse", "HEAD")
    if commit and _git("status", "--porcelain", "--untracked-files=no"):
        commit += "-dirty"
    tags = {
        "git_commit": commit or "unknown",
        "mlflow.source.name": "mfgd",
        "mlflow.source.type": "LOCAL",
    }
    with suppress(KeyError, OSError):  # a container's user without a name
        tags["mlflow.user"] = getpass.getuser()
    return tags


def _git(*arguments: str) -> str:
    try:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _files(folder: Path, row: Row, problem: Problem, figures: bool) -> None:
    """Writes a run's artifacts: matrices.safetensors, trajectory.parquet and figures/."""
    import pyarrow
    from pyarrow import parquet

    from mfgd import plots

    table = pyarrow.table(row.trajectory | {"step": row.trajectory["step"].astype("int64")})
    parquet.write_table(table, folder / "trajectory.parquet")
    save_file(_matrices(row.factors, problem), folder / "matrices.safetensors")
    if figures:
        (folder / "figures").mkdir(exist_ok=True)
        for name, figure in plots.figures(row, problem).items():
            figure.savefig(folder / "figures" / f"{name}.png")


def _matrices(factors: Factors, problem: Problem) -> dict[str, Tensor]:
    matrices = {
        name: W.contiguous() for name, W in zip(factor_names(len(factors)), factors, strict=True)
    }
    if problem.generated or problem.entries.numel() <= SMALL:
        D = problem.holed.to(factors[0].dtype)
        kept = (
            {"D": D}
            if problem.pattern is None
            else zip(COMPRESSED, (D.crow_indices(), D.col_indices(), D.values()), strict=True)
        )
        matrices |= kept
    return matrices


def attach(run_id: str, folder: Path, uri: str | None = None) -> None:
    """Adds the files of a folder to the artifacts of a tracked run.

    Args:
        run_id: as the table and the UI show it.
        folder: whose files; its folders too.
        uri: where the run was tracked; as for `load_run`.
    """
    client(uri, writing=True).log_artifacts(run_id, str(folder))


def load_run(run_id: str, uri: str | None = None) -> Run:
    """Config, trajectory and matrices of a tracked run.

    Args:
        run_id: as the table and the UI show it.
        uri: where it was tracked; by default MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the working directory.

    Raises:
        Refused: no such run, or no such place.
    """
    import pandas
    from mlflow.exceptions import MlflowException

    reader = client(uri)
    with tempfile.TemporaryDirectory(prefix="mfgd-") as folder:
        try:
            here = _folder(
                reader.get_run(run_id).info
            )  # ten times as fast as to ask MLflow for what lies there
            paths = {
                name: here / name if here else Path(reader.download_artifacts(run_id, name, folder))
                for name in ("config.yaml", "trajectory.parquet", "matrices.safetensors")
            }
            if missing := [name for name, path in paths.items() if not path.exists()]:
                raise OSError(f"has no artifact {missing[0]}")
        except (MlflowException, OSError) as error:
            raise Refused(f"run {run_id}: {str(error).splitlines()[0]}") from None
        config = OmegaConf.load(paths["config.yaml"])
        assert isinstance(config, DictConfig)
        matrices = {name: W.clone() for name, W in load_file(paths["matrices.safetensors"]).items()}
        if COMPRESSED[0] in matrices:
            m = matrices[factor_names(config.depth)[-1]].shape[1]
            starts, columns, values = (matrices.pop(name) for name in COMPRESSED)
            matrices["D"] = compressed(starts, columns, values, len(starts) - 1, m)
        return Run(config, pandas.read_parquet(paths["trajectory.parquet"]), matrices)


def load_runs(
    *, experiment: str = "mfgd", parent: str | None = None, uri: str | None = None
) -> pandas.DataFrame:
    """Tracked runs, one a line, newest first: run_id, status, parent, params.*, metrics.* (last value) and tags.*.

    Args:
        experiment: name of the MLflow experiment.
        parent: only the children of this run.
        uri: where they were tracked; as for `load_run`.

    Raises:
        Refused: no such experiment, or no such place.
    """
    reader = client(uri)
    known = reader.get_experiment_by_name(experiment)
    if known is None:
        names = sorted(e.name for e in reader.search_experiments())
        raise Refused(
            f"experiment {experiment}: none of that name is tracked here; allowed are {', '.join(names)}"
        )
    wanted = _children(parent) if parent else ""
    found: list[Any] = []
    token: str | None = None
    while True:
        page = reader.search_runs([known.experiment_id], wanted, max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return _lines(found)


def _lines(runs: Sequence[Any]) -> pandas.DataFrame:
    import pandas

    lines = []
    for run in runs:
        line = {
            "run_id": run.info.run_id,
            "status": run.info.status,
            "parent": run.data.tags.get("mlflow.parentRunId"),
        }
        line |= {f"params.{key}": value for key, value in run.data.params.items()}
        line |= {f"metrics.{key}": value for key, value in run.data.metrics.items()}
        lines.append(
            line | {f"tags.{k}": v for k, v in run.data.tags.items() if not k.startswith("mlflow.")}
        )
    return pandas.DataFrame(lines)
