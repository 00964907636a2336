"""The page of components is what the docstrings say, and says something of every key."""

from importlib import import_module
from typing import Annotated, Literal

import components
import pytest
from annotated_types import Ge, Gt, Lt, MinLen
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from test_config import OPTIONS

from mfgd import config


def test_page_is_current():
    assert components.PAGE.read_text(encoding="utf-8") == components.page(), (
        "conf/README.md is stale: make components"
    )


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_has_a_formula_and_every_key_a_meaning(group, option):
    module = import_module(f"mfgd.{group}")
    assert components.told(getattr(module, option)).paragraphs[0]
    keys = components.keys(module, option)
    assert not [key for key, _, _, meaning in keys if not meaning]
    strangers = set(components.told(getattr(module, option)).meanings) - {key for key, *_ in keys}
    assert not strangers


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        (Annotated[float, Ge(0), Lt(1)], "number ≥ 0, < 1"),
        (list[Annotated[int, Ge(0)]] | None, "`null` or list of: integer ≥ 0"),
        (bool | Annotated[int, Gt(0)], "`true`, `false` or integer > 0"),
        (float | int, "number"),
        (Literal["sum", "mean"], "`sum`, `mean`"),
        (Annotated[str, MinLen(1)], "text of at least one letter"),
    ],
)
def test_annotations_in_words(hint, said):
    assert components.words(hint) == said


def test_what_a_docstring_tells():
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

    assert components.told(function) == (
        ["y = x.", "More of it."],
        "Euler 1748,\nchapter 1.",
        {"first": "one and more", "second": "two"},
    )


def test_the_page_is_no_option_to_hydra():
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        repository = GlobalHydra.instance().config_loader().repository
        assert "README" not in repository.get_group_options("")
