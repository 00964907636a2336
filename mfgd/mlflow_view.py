"""The saved view in which MLflow's UI opens a sweep: charts, columns, order, filter.

MLflow keeps a shared view as a tag of the experiment. Its layout is no documented interface; it was
read off MLflow 3.5 to 3.17, and a browser test opens it. A UI that does not find a view says so and
opens the experiment without one.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mfgd.columns import REPEATS, choose_measure, find_swept, is_numeric, short_name
from mfgd.mlflow_client import children_of

if TYPE_CHECKING:
    import pandas
    from mlflow import MlflowClient

TAG = "mlflow.sharedViewState."
LONGEST = 5000
"""Characters that MLflow keeps of a tag."""
QUERY = "viewStateShareKey={key}&compareRunsMode=CHART&workflowType=machine_learning"
CURVES = ("excess_loss", "relative_error", "heldout_error")
RATE = "success_rate"
RESULTS = (RATE, "excess_loss", "heldout_error", "final_relative_error", "steps_run")
ONE_VALUE = (
    "final_",
    "best_",
    "steps_",
    "early_stop_",
    "deviation.",
    "half_time.",
    "runs.",
    "replicates.",
)
"""How the names of metrics begin that have one value a run."""
PLAIN = ("solve_seconds", "lr_absolute", "lr_limit", RATE)
"""Further metrics of one value a run."""
QUARTILES = (".q25", ".q75")
"""How the quartiles of replicates end, which share the chart of their median."""
FEW = 8
"""Up to so many runs have quartiles in the charts."""
WIDTHS = {
    "attributes.`Run Name`": 210,
    "tags.`outcome`": 90,
    "metrics.`excess_loss`": 110,
    "metrics.`final_relative_error`": 150,
    "metrics.`steps_run`": 80,
}
"""Column → pixels; MLflow takes 98 if nothing is said."""
AXES = 7
"""Keys beside each other in parallel coordinates."""


def view_tag(runs: pandas.DataFrame, parent: str, name: str, images: bool) -> tuple[str, str]:
    """The tag of an experiment that keeps the view of a sweep, and its value.

    Args:
        runs: the sweep's runs.
        parent: id of the sweep's own run, which is the key of the view too.
        name: of the view, in the list of views.
        images: whether the runs have series of images.
    """
    charts = _list_charts(runs, images)
    while True:
        value = _pack_view(_state(runs, parent, charts), name)
        if len(value) <= LONGEST or not charts:
            return TAG + parent, value
        charts = charts[: len(charts) * 3 // 4]  # the last are the least


def save(
    client: MlflowClient,
    experiment_id: str,
    runs: pandas.DataFrame,
    parent: str,
    name: str,
    images: bool,
) -> str:
    """Saves the view of a sweep; see `view_tag`.

    Returns:
        The query of an address that opens the view; empty without one, and the UI opens on its
        plain table.
    """
    from mlflow.exceptions import MlflowException

    tag, value = view_tag(runs, parent, name, images)
    with suppress(MlflowException):  # the layout is MLflow's own, and may be refused one day
        client.set_experiment_tag(experiment_id, tag, value)
        return QUERY.format(key=parent)
    return ""


def _pack_view(state: dict[str, Any], name: str) -> str:
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    now = int(1000 * time.time())
    view = {"name": name, "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"}
    return json.dumps(view)


def _state(runs: pandas.DataFrame, parent: str, charts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    keys = {key: _column_of(runs, key) for key in find_swept(runs)}
    shown = [*keys.values(), "tags.`outcome`"]
    shown += [f"metrics.`{name}`" for name in RESULTS if f"metrics.{name}" in runs]
    measure = choose_measure(runs)
    last = ["runDateAndNestInfo", "duration"]
    return {
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "searchFilter": children_of(parent),
        "orderByKey": f"metrics.`{short_name(measure)}`",
        "orderByAsc": True,
        "selectedColumns": shown,
        "columnOrder": ["attributes.`Run Name`", *shown, *last],
        "columnWidths": WIDTHS,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": list(charts),
        "compareRunSections": _sections(charts),
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {
            "xAxisKey": "step",
            "lineSmoothness": 0,
            "selectedXAxisMetricKey": "",
        },
    }


def _column_of(runs: pandas.DataFrame, key: str) -> str:
    """MLflow's name of a swept key: of the metric that sorts as a number, if there is one."""
    # The measure `loss` is called like the key, and is not its value.
    mirrored = f"metrics.{key}" in runs and is_numeric(runs, key)
    return f"metrics.`{key}`" if mirrored else f"params.`{key}`"


def _sections(charts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The sections that hold charts; what is not the answer is closed."""
    used = {chart["metricSectionId"] for chart in charts}
    sections = []
    for name, opened in SECTIONS.items():
        if name in used:
            section = {"uuid": name, "name": name, "display": opened, "isReordered": True}
            section |= {"deleted": False, "isGenerated": False, "columns": 2}
            sections.append(section | {"cardHeight": 500 if name == IMAGES else 400})
    return sections


ERROR, RESULT, IMAGES = "Error against step", "Settings against result", "Matrices at the end"
SPECTRUM, OTHER = "Spectrum", "Other measures"
SECTIONS = {ERROR: True, RESULT: True, IMAGES: True, SPECTRUM: False, OTHER: False}
"""Section → whether it is open."""


def _list_charts(runs: pandas.DataFrame, images: bool) -> list[dict[str, Any]]:
    """The charts, the most telling first."""
    names = [
        short_name(column)
        for column in map(str, runs.columns)
        if column.startswith("metrics.") and runs[column].notna().any()
    ]
    quartiles = {name for name in names if name.endswith(QUARTILES)}

    def draw(section: str, name: str) -> dict[str, Any]:
        more = [name + end for end in QUARTILES if name + end in quartiles and len(runs) <= FEW]
        return _line(section, [name, *more])

    keys = find_swept(runs)
    charts = [draw(ERROR, name) for name in CURVES if name in names]
    charts += _result_charts(runs, [key for key in keys if key not in REPEATS] or keys)
    if images and "steps_run" in names:  # a run that raised has no metrics
        step = int(runs["metrics.steps_run"].max())
        charts += [_image(name, step) for name in ("D_hat", "residual")]
    rest = [name for name in names if name not in CURVES and name not in quartiles]
    charts += [draw(SPECTRUM, name) for name in rest if name.startswith("sigma.")]
    bars = [*PLAIN, *(key for key in keys if is_numeric(runs, key))]
    for name in rest:
        if not name.startswith("sigma."):
            one = name in bars or name.startswith(ONE_VALUE)
            charts.append(_bar(name) if one else draw(OTHER, name))
    for number, chart in enumerate(charts):
        chart["uuid"] = f"mfgd{number:08d}"
    return charts


def _chart(kind: str, section: str, **more: Any) -> dict[str, Any]:
    chart = {"type": kind, "metricSectionId": section, "runsCountToCompare": 100}
    return chart | {"deleted": False, "isGenerated": False} | more


def _line(section: str, names: Sequence[str]) -> dict[str, Any]:
    return _chart(
        "LINE",
        section,
        metricKey=names[0],
        selectedMetricKeys=list(names),
        displayName=names[0].replace("_", " "),
        lineSmoothness=0,
        xAxisScaleType="log",
        scaleType="log",
        range={},
        xAxisKey="step",
        selectedXAxisMetricKey="",
        yAxisKey="metric",
        yAxisExpressions=[],
        ignoreOutliers=False,
        useGlobalXaxisKey=True,
        useGlobalLineSmoothing=True,
        displayPoints=False,
    )


def _bar(name: str) -> dict[str, Any]:
    return _chart("BAR", OTHER, metricKey=name, displayName=name.replace("_", " "))


def _image(name: str, step: int) -> dict[str, Any]:
    return _chart(
        "IMAGE", IMAGES, imageKeys=[name], step=step, showRunParams=False, displayName=name
    )


def _result_charts(runs: pandas.DataFrame, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Parallel coordinates of the swept keys, a contour of the two main ones, a scatter of one."""
    measure = RATE if f"metrics.{RATE}" in runs else short_name(choose_measure(runs))
    result = {"key": measure, "type": "METRIC"}
    charts = [
        _chart(
            "PARALLEL",
            RESULT,
            selectedParams=list(keys[:AXES]),
            selectedMetrics=["steps_run", measure],
            showAllRuns=True,
            displayName=f"settings to {measure.replace('_', ' ')}",
        )
    ]
    numeric = [key for key in keys if is_numeric(runs, key)]
    if len(numeric) > 1:
        x, y = ({"key": key, "type": "PARAM"} for key in numeric[1::-1])
        charts.append(_chart("CONTOUR", RESULT, xaxis=x, yaxis=y, zaxis=result))
    if numeric:
        x = {"key": numeric[-1] if "lr" not in numeric else "lr", "type": "PARAM"}
        name = f"{measure.replace('_', ' ')} by {x['key']}"
        charts.append(_chart("SCATTER", RESULT, xaxis=x, yaxis=result, displayName=name))
    return charts
