"""Splits and layout are settled by looking at episodes before any shard is made."""

import logging
from pathlib import Path

import pytest

from tests.unit.data.readers.cheap_source import cheap_recipe
from tokenwm.data.making.plan import make_plan
from tokenwm.data.making.prepare import prepare
from tokenwm.data.recipes.first_look import FirstLook
from tokenwm.data.recipes.recipe import split_keys
from tokenwm.errors import SourceError


def places(recipe: object, split: str, count: int) -> tuple[int, ...]:
    """Numbers of the episodes that are dealt to a split."""
    keys = [f"e{index:04d}" for index in range(count)]
    dealt = split_keys(keys, recipe.splits)  # type: ignore[attr-defined]
    return tuple(index for index, key in enumerate(keys) if dealt[key] == split)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_whose_only_episode_is_bad_gets_another_one(
    split: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (bad,) = places(cheap_recipe(), split, 5)
    recipe = cheap_recipe(num_episodes=5, bad=(bad,), wider=())
    with caplog.at_level(logging.WARNING):
        manifest = prepare(recipe, tmp_path / "one")
    assert [item.key for item in manifest.excluded] == [f"e{bad:04d}"]
    assert {name: manifest.num_episodes(name) for name in ("train", "val", "test")} == {
        "train": 2,
        "val": 1,
        "test": 1,
    }
    assert f"no episode of split {split} can be used" in caplog.text
    prepare(recipe, tmp_path / "two", num_workers=2)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_one_of_another_shape_can_be_a_whole_split_too(tmp_path: Path) -> None:
    (odd,) = places(cheap_recipe(), "test", 5)
    manifest = prepare(cheap_recipe(num_episodes=5, bad=(), wider=(odd,)), tmp_path / "out")
    assert [item.key for item in manifest.excluded] == [f"e{odd:04d}"]
    assert manifest.num_episodes("test") == 1


def test_too_few_good_ones_are_an_error_before_anything_is_made(tmp_path: Path) -> None:
    recipe = cheap_recipe(num_episodes=5, bad=(0, 1, 2), wider=())
    with pytest.raises(SourceError, match="no episode is left for split"):
        prepare(recipe, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tar"))


@pytest.mark.parametrize("odd", range(5))
def test_one_odd_episode_does_not_decide_what_all_have(odd: int, tmp_path: Path) -> None:
    manifest = prepare(cheap_recipe(num_episodes=5, bad=(), wider=(odd,)), tmp_path / "out")
    assert [item.key for item in manifest.excluded] == [f"e{odd:04d}"]
    assert manifest.features["state"].shape == (2,)


def test_no_more_episodes_are_loaded_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = cheap_recipe(num_episodes=40, bad=(), wider=())
    source = recipe.open_source()
    loaded = []
    load = type(source).load
    monkeypatch.setattr(type(source), "load", lambda s, ref: loaded.append(ref) or load(s, ref))
    make_plan(recipe, source, FirstLook(source, strict=False))
    assert len(loaded) == 3  # one of each split
