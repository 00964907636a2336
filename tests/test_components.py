"""The reference, conf/README.md, is what the docstrings say, and says something of every key."""

import re
from importlib import import_module
from typing import Annotated, Literal, TypedDict, Unpack

import components
import pytest
from annotated_types import Ge, Gt, Lt, MinLen
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from test_config import OPTIONS

from mfgd import config, oracles
from mfgd.point import Scalars


def test_page_is_current():
    assert components.PAGE.read_text(encoding="utf-8") == components.write_page(), (
        "conf/README.md is stale: make components"
    )
    assert components.README.read_text(encoding="utf-8") == components.write_readme(), (
        "README.md is stale: make components"
    )


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_has_a_formula_and_every_key_a_meaning(group, option):
    module = import_module(f"mfgd.{group}")
    assert components.describe(getattr(module, option)).paragraphs[0]
    keys = components.list_keys(module, option)
    assert not [key.name for key in keys if not key.meaning]
    strangers = set(components.describe(getattr(module, option)).meanings)
    assert not strangers - {key.name for key in keys}


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        (Annotated[float, Ge(0), Lt(1)], "number ≥ 0, < 1"),
        (list[Annotated[int, Ge(0)]] | None, "`null` or list of: integer ≥ 0"),
        (bool | Annotated[int, Gt(0)], "`true`, `false` or integer > 0"),
        (float | int, "number"),
        (Literal["sum", "mean"], "`sum`, `mean`"),
        (Annotated[str, MinLen(1)], "text of at least one letter"),
        (Annotated[list[Annotated[int, Gt(0)]], MinLen(1)], "non-empty list of: integer > 0"),
    ],
)
def test_annotations_in_words(hint, said):
    assert components.in_words(hint) == said


class Shared(TypedDict):
    """Keys of several options.

    Keys:
        scale: multiplies.
    """

    scale: Annotated[float, Gt(0)]


def test_keys_of_a_typed_dict_stand_for_the_parameter():
    def function(*, path: str, **shared: Unpack[Shared]):
        pass

    hints, meanings = components.expand_keys(function)
    assert hints == {"path": str, "scale": Annotated[float, Gt(0)]}
    assert meanings == {"scale": "multiplies"}


def test_every_top_level_key_has_a_meaning():
    keys = components.list_top_keys()
    assert {key.name for key in keys} >= set(Scalars.model_fields)
    assert not [key.name for key in keys if not key.meaning]


def test_every_oracle_is_in_the_table():
    table = components.TEMPLATE.read_text(encoding="utf-8").split("## What theory says")[1]
    names = re.findall(r"^\| `(\w+)` \|", table.split("## Your own")[0], re.MULTILINE)
    assert sorted(names) == sorted(oracles.ORACLES)


def test_what_a_docstring_says():
    def function():
        """y = x.

        More of it.

        Source: Euler 1748,
        chapter 1.

        Args:
            first: one
                and more.
            second: two.

        Raises:
            Refused: never.
        """

    assert components.describe(function) == (
        ["y = x.", "More of it."],
        "Euler 1748,\nchapter 1.",
        {"first": "one and more", "second": "two"},
    )


def test_the_page_is_no_option_to_hydra():
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        repository = GlobalHydra.instance().config_loader().repository
        assert "README" not in repository.get_group_options("")
