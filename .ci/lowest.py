"""Prints the lower bound of each dependency in pyproject.toml as a pin, for pip's --constraint."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
for requirement in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
    name, bound = re.match(r"([\w-]+)>=([\d.]+)", requirement).groups()
    print(f"{name}=={bound}")
