"""A sweep's grid: Hydra's values, multiplied out, each point in a folder of its own."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kinoise.config import UsageError
from kinoise.train.grid import LONGEST, expand

WORDS = st.lists(
    st.text("abcxyz019_.-/", min_size=1, max_size=60).filter(lambda text: text[0].isalpha()),
    min_size=2,
    max_size=4,
    unique=True,
)


@given(st.dictionaries(st.sampled_from(["seed", "policy.network.width", "train.lr", "env"]), WORDS, min_size=1, max_size=3))
def test_every_combination_is_there_once_with_a_name_of_its_own(choices: dict[str, list[str]]) -> None:
    grid = expand(["data=D", *(f"{key}={','.join(values)}" for key, values in choices.items())])
    assert grid.fixed == ("data=D",)
    count = 1
    for key, values in choices.items():
        count *= len(values)
        assert {point.overrides[key] for point in grid.points} == set(values)
    assert len({tuple(point.overrides.items()) for point in grid.points}) == len(grid.points) == count
    names = [point.name for point in grid.points]
    assert len(set(names)) == count
    assert all(re.fullmatch(r"[A-Za-z0-9_.+=-]+", name) and len(name) <= LONGEST + 9 for name in names)


def test_a_name_is_that_of_the_settings_and_does_not_depend_on_what_else_is_swept() -> None:
    few, many = expand(["seed=0,1", "train.lr=1e-3,2e-3"]), expand(["seed=range(0,3)", "train.lr=choice(1e-3,2e-3,3e-3)"])
    assert [point.name for point in few.points][:2] == ["seed=0__train.lr=0.001", "seed=0__train.lr=0.002"]
    assert {point.name for point in few.points} < {point.name for point in many.points}


def test_what_is_in_quotes_or_brackets_is_one_value_and_a_path_is_left_alone() -> None:
    grid = expand(["runs/lr=0.1,b", "env='metaworld/push,reach'", "run=runs/lr=1", "betas=[0.9,0.95]", "seed=0,1"])
    assert grid.fixed == ("runs/lr=0.1,b", "env='metaworld/push,reach'", "run=runs/lr=1", "betas=[0.9,0.95]")
    pairs = expand(["train.betas=[0.9,0.95],[0.9,0.99]"])
    assert [point.overrides["train.betas"] for point in pairs.points] == ["[0.9,0.95]", "[0.9,0.99]"]
    quoted = expand(["""run='a=1','b=2'"""])
    assert [point.overrides["run"] for point in quoted.points] == ["'a=1'", "'b=2'"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["seed=0"], "nothing to sweep"),
        (["lr=interval(0,1)"], "no list of values"),
        (["policy=glob(*)"], "no list of values"),
        (["run=a=1,b=2"], "in quotes"),
        (["seed=0,1", "seed=2,3"], "swept twice"),
    ],
)
def test_what_has_no_list_of_values_is_refused(arguments: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        expand(arguments)
