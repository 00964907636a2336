"""The page of components, out of docstrings, annotations and conf/. `make components` writes conf/README.md.

A docstring is a first paragraph with the formula, then prose, a paragraph `Source: …`, and a section `Args:` with what
each key means; what a module's own section `Keys:` says holds for all its options, and a comment in the YAML for that
one.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType, NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MinLen
from omegaconf import OmegaConf

from mfgd import config, metrics, oracles

PAGE = config.CONF / "README.md"
MEASURED: Sequence[tuple[ModuleType, Sequence[str]]] = [
    (
        metrics,
        [
            *(
                "relative_error",
                "heldout_error",
                "excess_loss",
                "balance",
                "singular_values",
                "effective_rank",
            ),
            *("modes", "angles", "factor_distance", "sharpness"),
        ],
    ),
    (oracles, list(oracles.ORACLES)),
]
"""Functions that are no options of the shell line, and belong on the page all the same."""
TOP = """\
# Components

<!-- Written by `make components` from the docstrings; an edit here is lost. -->

What can be chosen on the shell line, as `GROUP=OPTION`: formula, keys with the value each has unless given, source.
Symbols and shapes are those of [the package's docstring](../mfgd/__init__.py). The keys of the top level are in the
[README](../README.md#say-what-to-run)."""


class Told(NamedTuple):
    """What a docstring tells."""

    paragraphs: list[str]
    source: str
    meanings: dict[str, str]


def page() -> str:
    """The whole page."""
    index = ["| group | options |", "|---|---|"]
    parts = []
    for group in config.GROUPS:
        options = sorted(path.stem for path in (config.CONF / group).glob("*.yaml"))
        module = import_module(f"mfgd.{group}")
        index.append(_row(group, [(f"{group}={name}", name) for name in options]))
        parts += [_title(module), *(_option(module, name) for name in options)]
    for module, names in MEASURED:
        index.append(_row(_name(module), [(f"{_name(module)}.{name}", name) for name in names]))
        parts += [
            _title(module),
            *(_described(f"{_name(module)}.{name}", getattr(module, name)) for name in names),
        ]
    return "\n\n".join([TOP, "\n".join(index), *parts]) + "\n"


def keys(module: ModuleType, name: str) -> list[tuple[str, str, str, str]]:
    """Key, value, what is allowed, and meaning of each key of an option; a meaning that stands nowhere is empty."""
    function = getattr(module, name)
    path = config.CONF / _name(module) / f"{name}.yaml"
    text = path.read_text()
    node: Any = OmegaConf.to_container(OmegaConf.load(path))
    meanings = told(module).meanings | told(function).meanings
    hints = get_type_hints(function, include_extras=True)
    lines = []
    for key in inspect.signature(function).parameters:
        value = "required" if node[key] == "???" else f"`{_written(node[key])}`"
        comment = re.search(rf"^{key}: .*? # (.*)$", text, re.MULTILINE)
        meaning = meanings.get(key) or (comment[1] if comment else "")
        lines.append((key, value, words(hints[key]), _markdown(meaning)))
    return lines


def told(thing: Any) -> Told:
    """A docstring in its parts."""
    prose, *sections = re.split(
        r"\n\n(?=(?:Args|Keys|Returns|Raises|Yields):\n)", inspect.getdoc(thing) or ""
    )
    paragraphs = prose.split("\n\n")
    sources = [text.removeprefix("Source: ") for text in paragraphs if text.startswith("Source: ")]
    meanings = {}
    for section in sections:
        title, _, body = section.partition(":\n")
        if title in ("Args", "Keys"):
            for entry in re.split(r"\n(?=    \S)", body):
                key, _, meaning = " ".join(entry.split()).partition(": ")
                meanings[key] = meaning.rstrip(".")
    return Told(
        [text for text in paragraphs if not text.startswith("Source: ")],
        " ".join(sources),
        meanings,
    )


def words(hint: Any) -> str:
    """What an annotation allows."""
    if hint in _PLAIN:
        return _PLAIN[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is list:
        return f"list of: {words(arguments[0])}"
    if hasattr(hint, "__metadata__"):
        return " ".join(
            [words(arguments[0]), ", ".join(filter(None, map(_bound, hint.__metadata__)))]
        ).strip()
    kinds = sorted(
        arguments, key=lambda kind: kind is not NoneType
    )  # null first, as a list's own words are many
    return " or ".join(words(kind) for kind in kinds if kind is not int or float not in kinds)


_PLAIN = {bool: "`true`, `false`", int: "integer", float: "number", str: "text", NoneType: "`null`"}


def _bound(limit: Any) -> str:
    for kind, sign in ((Gt, ">"), (Ge, "≥"), (Lt, "<"), (Le, "≤")):
        if isinstance(limit, kind):
            return f"{sign} {getattr(limit, kind.__name__.lower())}"
    assert limit == MinLen(1), limit
    return "of at least one letter"


def _title(module: ModuleType) -> str:
    name = _name(module)
    here = f"In [mfgd/{name}.py](../mfgd/{name}.py)."
    return "\n\n".join([f"## {name}", *map(_markdown, told(module).paragraphs), here])


def _name(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def _option(module: ModuleType, name: str) -> str:
    rows = [f"| `{key}` | {' | '.join(cells)} |" for key, *cells in keys(module, name)]
    table = (
        "\n".join(["| key | value | allowed | meaning |", "|---|---|---|---|", *rows])
        if rows
        else "No keys."
    )
    return _described(f"{_name(module)}={name}", getattr(module, name), table)


def _described(title: str, function: Callable[..., Any], table: str = "") -> str:
    parts = told(function)
    source = f"Source: {_markdown(parts.source)}" if parts.source else ""
    return "\n\n".join(
        filter(None, [f"### `{title}`", *map(_markdown, parts.paragraphs), table, source])
    )


def _markdown(text: str) -> str:
    """Text of a docstring, with what Markdown would take for markup outside of `code` escaped."""
    pieces = re.split(r"(``.*?``|`.*?`)", text)
    pieces[::2] = [re.sub(r"([\\*_<|])", r"\\\1", piece) for piece in pieces[::2]]
    pieces[1::2] = [f"`{piece.strip('`')}`" for piece in pieces[1::2]]
    return "".join(pieces)


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _row(title: str, headings: Sequence[tuple[str, str]]) -> str:
    """A group, and a link to each heading by the name that GitHub gives it."""
    links = " · ".join(f"[`{text}`](#{heading.replace('=', '')})" for heading, text in headings)
    return f"| [{title}](#{title}) | {links} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
