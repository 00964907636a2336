"""Which functions a config may name. A YAML that somebody else wrote must run nothing else.

What is allowed is looked up without importing it: a module of the working directory, of the
experiments of a checkout, or one that the user names in an environment variable or an installed
package by an entry point. No key can allow it, because a YAML could set the key.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib import import_module, metadata, util
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

from mfgd.environment import HOME
from mfgd.errors import Refused

VARIABLE = "MFGD_TARGETS"
"""Its value has modules, with a comma between them."""
NAMED = os.environ.get(VARIABLE, "")
"""The value when the process started: a config may set variables, by hydra.job.env_set."""
ENTRY_POINTS = "mfgd"
"""The group of the entry points by which a package offers modules, or single functions."""
OURS = ("mfgd", "hydra_plugins")
"""Of these only the options are for configs."""
ALLOWED = (
    "allowed are options of mfgd, functions in files of the working directory, and what the "
    f"environment variable {VARIABLE} names"
)
FORM = "must be the dotted path of a function"


def check_target(target: object) -> None:
    """Refuses a dotted path that a config may not name. Nothing is imported.

    Raises:
        Refused: with the reason.
    """
    names = _split_path(target) if isinstance(target, str) else [""]
    if not all(name.isidentifier() and not name.startswith("__") for name in names):
        raise Refused(f"{FORM}; {ALLOWED}")
    package, path = names[0], ".".join(names)
    if package not in OURS and _is_here(package):
        return
    if any(path == offered or path.startswith(f"{offered}.") for offered in _list_offered()):
        return
    if package in OURS:
        raise Refused(f"{path} is no option of mfgd; {ALLOWED}")
    if _find_in(os.getcwd(), package):
        hidden = f"{package} of the working directory is hidden by another module of that name"
        raise Refused(f"{hidden}; {ALLOWED}")
    raise Refused(f"{package} is no module of the working directory; {ALLOWED}")


def load_target(target: str) -> Any:
    """Returns what a dotted path names: modules, classes defined there, and a name in the last one.

    Raises:
        Refused: there is no such name, or the path leaves its package, as losses.os.system does.
        Exception: whatever a module raises that is imported.
    """
    path, *names = _split_path(target)
    package = path
    found: Any = import_module(path)
    while names and hasattr(found, "__path__") and util.find_spec(f"{path}.{names[0]}"):
        path = f"{path}.{names.pop(0)}"
        found = import_module(path)
    for number, name in enumerate(names):
        if number and not _is_class_of(package, found):
            raise Refused(f"{path} is no module or class of {package}; {ALLOWED}")
        if not hasattr(found, name):
            raise Refused(f"{path} has no {name}; {FORM}")
        found = getattr(found, name)
        path = f"{path}.{name}"
    return found


def _split_path(target: str) -> list[str]:
    """The names in a dotted path; a colon may stand before those that are no modules."""
    return target.replace(":", ".").split(".")


def _is_class_of(package: str, found: object) -> bool:
    return isinstance(found, type) and found.__module__.partition(".")[0] == package


def _is_here(package: str) -> bool:
    """Whether an import takes a module from the working directory, or the experiments from the
    checkout that mfgd comes from."""
    if package in sys.stdlib_module_names:
        return False
    folders = [os.getcwd()]
    if package == "experiments" and os.path.isdir(os.path.join(HOME, "conf", "experiment")):
        folders.append(HOME)
    taken = _list_places(util.find_spec(package))
    return any(taken and taken == _find_in(folder, package) for folder in folders)


def _find_in(folder: str, package: str) -> list[str]:
    """The places of a module in a folder, none if it is not there."""
    return _list_places(PathFinder.find_spec(package, [folder]))


def _list_places(spec: ModuleSpec | None) -> list[str]:
    """The file of a module, or the folders of a package that has no file."""
    if spec is None:
        return []
    places = [spec.origin] if spec.origin else spec.submodule_search_locations
    return [os.path.realpath(place) for place in places or ()]


def _list_offered() -> Iterator[str]:
    """The modules and functions that the user, then that installed packages name."""
    for name in NAMED.split(","):
        if name.strip():
            yield name.strip()
    for point in metadata.entry_points(group=ENTRY_POINTS):
        yield ".".join(filter(None, (point.module, point.attr)))
