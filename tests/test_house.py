"""Rules of the code that the linter cannot hold."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from mfgd import config

ROOT = Path(__file__).parents[1]
MODULES = sorted([*(ROOT / "mfgd").rglob("*.py"), *(ROOT / "hydra_plugins").rglob("*.py")])
DOCUMENTED = {"_replace", "_asdict", "_fields", "_make", "_exit"}
"""Public all the same: of NamedTuple, and of os."""
OPTIONS = {path.stem for group in config.GROUPS for path in (config.CONF / group).glob("*.yaml")}
"""Names that the shell shows: several groups may have an option of one name."""


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def list_definitions(path: Path) -> Iterator[str]:
    """Functions and classes at the top level of a module."""
    for node in parse(path).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name


def is_private(name: str) -> bool:
    """Whether a dotted name has a part that begins with one underscore."""
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def list_own_names(tree: ast.Module) -> Iterator[str]:
    """Names that a module defines: functions, classes, variables and attributes of self."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "cls"):
            yield node.attr


def list_private_uses(path: Path) -> Iterator[str]:
    """Private names of other modules that a module imports, or reads from objects."""
    tree = parse(path)
    own = {*list_own_names(tree), *DOCUMENTED}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if is_private(name) and node.module != "__future__":
                    yield name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if is_private(alias.name):
                    yield alias.name
        elif isinstance(node, ast.Attribute):
            if is_private(node.attr) and node.attr not in own:
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr"):
            name = ast.literal_eval(node.args[1]) if isinstance(node.args[1], ast.Constant) else ""
            if is_private(name) and name not in own:
                yield ast.unparse(node)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_module_is_short(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= 300


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_no_conditional_expression_is_inside_another(path):
    nested = []
    for outer in ast.walk(parse(path)):
        if isinstance(outer, ast.IfExp):
            inner = [node for node in ast.walk(outer) if isinstance(node, ast.IfExp)]
            if len(inner) > 1:
                nested.append(outer.lineno)
    assert not nested


def test_a_name_is_defined_in_one_module_only():
    homes = defaultdict(set)
    for path in MODULES:
        for name in list_definitions(path):
            if not name.startswith("__") and name not in OPTIONS:
                homes[name].add(path.name)
    several = {name: sorted(paths) for name, paths in homes.items() if len(paths) > 1}
    several.pop("main", None)  # the entry points of the two commands
    assert not several


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_private_interfaces_of_others_stand_in_one_module(path):
    if path.name != "internals.py":
        assert not list(list_private_uses(path))


def test_private_uses_are_found(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        "import hydra._internal\n"
        "from hydra.core import _secret\n"
        "from omegaconf import OmegaConf\n"
        "OmegaConf._hidden()\n"
        "getattr(OmegaConf, '_named')\n"
        "self._own\n"
        "other._own\n"
    )
    assert sorted(list_private_uses(path)) == [
        "OmegaConf._hidden",
        "getattr(OmegaConf, '_named')",
        "hydra._internal",
        "hydra.core._secret",
    ]
