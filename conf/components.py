"""Writes the reference of the shell line, README.md beside this file, and the table of options in
the README of the project. Run by `make components`.

template.md holds the text of the page. A line {{ NAME }} of the template stands for a part that is
generated from docstrings, annotations and the YAMLs of this folder.

A docstring is a first paragraph with the formula, then prose, a paragraph `Source: …`, and a
section `Args:` with the meaning of each key. A section `Keys:` of a module holds for all its
options, of a TypedDict for the functions that take its keys, and a comment in the YAML for one
option.
"""

import inspect
import json
import re
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any, Literal, NamedTuple, Unpack, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from omegaconf import OmegaConf

from mfgd import config, factor_measures, metrics, oracles, oscillation
from mfgd.point import Scalars
from mfgd.types import Entry

PAGE = Path(__file__).with_name("README.md")
TEMPLATE = Path(__file__).with_name("template.md")
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- options, by `make components` -->", "<!-- end of options -->"
"""Comments around the table of options in README.md."""
CONFIG = config.CONF / "config.yaml"
MEASURED: Sequence[tuple[ModuleType, Sequence[str]]] = [
    (
        metrics,
        [
            "relative_error",
            "heldout_error",
            "excess_loss",
            "balance",
            "singular_values",
            "effective_rank",
            "modes",
            "angles",
            "factor_distance",
            "procrustes_distance",
            "sharpness",
        ],
    ),
    (
        factor_measures,
        ["factor_norms", "pair_balances", "norm_gap", "root_balance", "best_rank_error"],
    ),
    (oscillation, ["find_oscillation"]),
    (oracles, list(oracles.ORACLES)),
]
"""Functions that are no options of the shell line, and that the page describes as well."""
HEAD = ["| key | value | allowed | meaning |", "|---|---|---|---|"]
PLAIN = {
    bool: "`true`, `false`",
    int: "integer",
    float: "number",
    str: "text",
    NoneType: "`null`",
    Entry: "number or `null`",
}
SIGNS = ((Gt, "gt", ">"), (Ge, "ge", "≥"), (Lt, "lt", "<"), (Le, "le", "≤"))


class Description(NamedTuple):
    """What a docstring says."""

    paragraphs: list[str]
    source: str
    meanings: dict[str, str]


class Key(NamedTuple):
    """A row of a table of keys, in Markdown; the meaning is empty if no text gives one."""

    name: str
    value: str
    allowed: str
    meaning: str

    def as_row(self) -> str:
        return f"| `{self.name}` | {self.value} | {self.allowed} | {self.meaning} |"


def write_page() -> str:
    """The whole page."""
    parts = {
        "index": "\n".join(list_components()),
        "keys": "\n".join([*HEAD, *(key.as_row() for key in list_top_keys())]),
        "components": "\n\n".join(describe_components()),
    }
    text = TEMPLATE.read_text(encoding="utf-8")
    return re.sub(r"^{{ (\w+) }}$", lambda match: parts[match[1]], text, flags=re.MULTILINE)


def write_readme() -> str:
    """README.md of the project, with the table of options as the YAMLs have them."""
    rows = ["| group | options |", "|---|---|"]
    for module, options in list_groups():
        rows.append(f"| `{name_of(module)}` | {' '.join(f'`{option}`' for option in options)} |")
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return "\n".join([before + BEGIN, *rows, END + after])


def list_components() -> Iterator[str]:
    """The table of groups with a link to each section."""
    yield "| group | options |"
    yield "|---|---|"
    for module, options in list_groups():
        name = name_of(module)
        yield link_row(name, [(f"{name}={option}", option) for option in options])
    for module, functions in MEASURED:
        name = name_of(module)
        yield link_row(name, [(f"{name}.{function}", function) for function in functions])


def list_groups() -> Iterator[tuple[ModuleType, list[str]]]:
    """Each group's module with its options."""
    for group in config.GROUPS:
        options = sorted(path.stem for path in (config.CONF / group).glob("*.yaml"))
        yield import_module(f"mfgd.{group}"), options


def describe_components() -> Iterator[str]:
    """The sections of all options and measures."""
    for module, options in list_groups():
        yield title(module)
        for option in options:
            table = "No keys."
            if keys := list_keys(module, option):
                table = "\n".join([*HEAD, *(key.as_row() for key in keys)])
            yield section(f"{name_of(module)}={option}", getattr(module, option), table)
    for module, functions in MEASURED:
        yield title(module)
        for function in functions:
            described = getattr(module, function, None)
            if module is oracles:
                described = oracles.ORACLES[function]
            yield section(f"{name_of(module)}.{function}", described)


def list_top_keys() -> list[Key]:
    """The keys at the top level of the shell line."""
    hints = get_type_hints(Scalars, include_extras=True)
    values = load(CONFIG)
    keys = []
    for name, meaning in read_comments(CONFIG).items():
        allowed = "functions by name"
        if name in hints:
            allowed = in_words(hints[name])
        keys.append(Key(name, f"`{as_text(values[name])}`", allowed, escape(meaning)))
    return keys


def list_keys(module: ModuleType, option: str) -> list[Key]:
    """The keys of an option."""
    path = config.CONF / name_of(module) / f"{option}.yaml"
    values = load(path)
    function = getattr(module, option)
    hints, shared = expand_keys(function)
    meanings = read_comments(path) | describe(module).meanings | shared
    meanings |= describe(function).meanings
    keys = []
    for name, hint in hints.items():
        value = "required"
        if values[name] != "???":
            value = f"`{as_text(values[name])}`"
        keys.append(Key(name, value, in_words(hint), escape(meanings.get(name, ""))))
    return keys


def expand_keys(function: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The annotation of each key of a function, and the meanings that a TypedDict gives.

    A parameter `**x: Unpack[SomeDict]` stands for the keys of the TypedDict.
    """
    hints: dict[str, Any] = {}
    meanings: dict[str, str] = {}
    annotations = get_type_hints(function, include_extras=True)
    for name in inspect.signature(function).parameters:
        annotation = annotations[name]
        if get_origin(annotation) is not Unpack:
            hints[name] = annotation
            continue
        (typed_dict,) = get_args(annotation)
        hints |= get_type_hints(typed_dict, include_extras=True)
        meanings |= describe(typed_dict).meanings
    return hints, meanings


def describe(thing: Any) -> Description:
    """The parts of a docstring."""
    text = inspect.getdoc(thing) or ""
    prose, *sections = re.split(r"\n\n(?=(?:Args|Keys|Returns|Raises|Yields):\n)", text)
    paragraphs, sources = [], []
    for paragraph in prose.split("\n\n"):
        if paragraph.startswith("Source: "):
            sources.append(paragraph.removeprefix("Source: "))
        else:
            paragraphs.append(paragraph)
    meanings = {}
    for part in sections:
        heading, _, body = part.partition(":\n")
        if heading not in ("Args", "Keys"):
            continue
        for entry in re.split(r"\n(?=    \S)", body):
            key, _, meaning = " ".join(entry.split()).partition(": ")
            meanings[key] = meaning.rstrip(".")
    return Description(paragraphs, " ".join(sources), meanings)


def read_comments(path: Path) -> dict[str, str]:
    """The comment after each key of a YAML file, by key."""
    pattern = r"^(\w+): .*? # (.*)$"
    return dict(re.findall(pattern, path.read_text(encoding="utf-8"), re.MULTILINE))


def load(path: Path) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(path))


def in_words(hint: Any) -> str:
    """What an annotation allows."""
    if hint in PLAIN:
        return PLAIN[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is list:
        return f"list of: {in_words(arguments[0])}"
    if hasattr(hint, "__metadata__"):
        if get_origin(arguments[0]) is list and hint.__metadata__ == (MinLen(1),):
            return f"non-empty {in_words(arguments[0])}"
        bounds = [bound_in_words(limit) for limit in hint.__metadata__]
        return f"{in_words(arguments[0])} {', '.join(bounds)}"
    # null comes first, because the words of a list are many; a number may be an integer anyway.
    kinds = sorted(arguments, key=lambda kind: kind is not NoneType)
    if float in kinds and int in kinds:
        kinds.remove(int)
    return " or ".join(in_words(kind) for kind in kinds)


def bound_in_words(limit: Any) -> str:
    for kind, field, sign in SIGNS:
        if isinstance(limit, kind):
            return f"{sign} {getattr(limit, field)}"
    if isinstance(limit, MaxLen):
        return f"at most {limit.max_length}"
    assert limit == MinLen(1), limit
    return "of at least one letter"


def title(module: ModuleType) -> str:
    """The heading and the text of a group."""
    name = name_of(module)
    here = f"In [mfgd/{name}.py](../mfgd/{name}.py)."
    return "\n\n".join([f"## {name}", *map(escape, describe(module).paragraphs), here])


def section(heading: str, function: Callable[..., Any], table: str = "") -> str:
    """The section of an option or a measure."""
    description = describe(function)
    parts = [f"### `{heading}`", *map(escape, description.paragraphs)]
    if table:
        parts.append(table)
    if description.source:
        parts.append(f"Source: {escape(description.source)}")
    return "\n\n".join(parts)


def name_of(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def escape(text: str) -> str:
    """Text of a docstring in Markdown: outside of `code`, special characters are escaped."""
    pieces = re.split(r"(``.*?``|`.*?`)", text)
    pieces[::2] = [re.sub(r"([\\*_<|])", r"\\\1", piece) for piece in pieces[::2]]
    pieces[1::2] = [f"`{piece.strip('`')}`" for piece in pieces[1::2]]
    return "".join(pieces)


def as_text(value: Any) -> str:
    """A value as the YAML has it."""
    if isinstance(value, str):
        return value
    return json.dumps(value)


def link_row(group: str, headings: Sequence[tuple[str, str]]) -> str:
    """A row of the index. GitHub names a heading by its letters and digits."""
    links = []
    for heading, text in headings:
        anchor = re.sub(r"[^\w-]", "", heading)
        links.append(f"[`{text}`](#{anchor})")
    return f"| [{group}](#{group}) | {' · '.join(links)} |"


if __name__ == "__main__":
    PAGE.write_text(write_page(), encoding="utf-8")
    README.write_text(write_readme(), encoding="utf-8")
