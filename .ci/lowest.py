"""Prints the lower bound of each dependency in pyproject.toml as a pin, for pip's --constraint."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
for requirement in [*project["dependencies"], *extras["optuna"], *extras["test"]]:
    name, bound = re.match(r"([\w-]+)>=([\d.]+)", requirement).groups()
    print(f"{name}=={bound}")
