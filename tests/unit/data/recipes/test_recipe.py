from pathlib import Path
from typing import Any

import pytest

from tokenwm.data.readers.base import SOURCES, source_config_class
from tokenwm.data.recipes.recipe import SplitConfig, load_recipe, parse_recipe, split_keys
from tokenwm.errors import RecipeError

RECIPES = Path(__file__).parents[4] / "data_recipes"


def values(**changes: Any) -> dict[str, Any]:
    source = {"type": "lerobot", "path": "x", "cameras": {"front": "observation.images.front"}}
    return {"name": "test", "source": source, "control_rate": 10} | changes


@pytest.mark.parametrize(
    "name", ["pusht", "unitree_g1_bottle", "unitree_g1_bottle_all", "template"]
)
def test_shipped_recipes_are_valid(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    assert recipe.control_rate == 10.0
    assert parse_recipe(recipe.to_dict()).to_dict() == recipe.to_dict()


def test_simulators_say_that_they_record() -> None:
    """An option ``num_episodes`` would not: a reader may have one for another purpose."""
    recorded = {
        name: load_recipe(RECIPES / f"{name}.yaml").records for name in ("pusht", "template")
    }
    assert recorded == {"pusht": True, "template": False}
    for name in SOURCES:
        assert isinstance(source_config_class(name).records, bool)
    with pytest.raises(RecipeError, match="unknown key 'source.records'"):
        parse_recipe(values(source={**values()["source"], "records": True}))


def test_template_lists_every_key_of_a_lerobot_recipe() -> None:
    from omegaconf import OmegaConf

    written = OmegaConf.to_container(OmegaConf.load(RECIPES / "template.yaml"))
    full = load_recipe(RECIPES / "template.yaml").to_dict()
    assert isinstance(written, dict)
    assert set(written) == set(full)
    assert set(written["source"]) == set(full["source"])
    assert set(written["quality"]) == set(full["quality"])


def test_defaults() -> None:
    recipe = parse_recipe(values())
    assert recipe.image_size == (64, 64)
    assert recipe.action_aggregation == "last"
    assert recipe.quality.strict is False


def test_overrides_go_on_top_of_the_file(tmp_path: Path) -> None:
    recipe = load_recipe(
        RECIPES / "pusht.yaml",
        ["source.num_episodes=3", "image_size=[32,48]", "quality.strict=true"],
    )
    assert recipe.image_size == (32, 48)
    assert recipe.quality.strict is True
    assert recipe.to_dict()["source"]["num_episodes"] == 3
    assert recipe.folder == RECIPES.resolve()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contol_rate": 10}, r"unknown key 'contol_rate'; did you mean 'control_rate'\?"),
        (
            {"quality": {"strikt": True}},
            r"unknown key 'quality.strikt'; did you mean 'quality.strict",
        ),
        ({"folder": "/"}, "unknown key 'folder'"),
        (
            {"source": {"type": "lerobot", "path": "x", "camera": {}}},
            "did you mean 'source.cameras'",
        ),
        ({"source": {"type": "lerobt", "path": "x"}}, "did you mean 'lerobot'"),
        ({"source": {"path": "x"}}, "'type' chooses the reader"),
        ({"source": {"type": "lerobot", "cameras": {"a": "b"}}}, "'source.path' is missing"),
        (
            {"source": {"type": "lerobot", "path": "x", "cameras": {}, "state": None}},
            "source.cameras is empty and state is null",
        ),
        (
            {"source": {"type": "lerobot", "path": "x", "state": 3}},
            "source.state is '3' .*expected text or a list, each entry text or null",
        ),
        (
            {"source": {"type": "lerobot", "path": "x", "cameras": ["a"]}},
            "expected keys and values, each text or one of auto",
        ),
        ({"control_rate": "ten"}, r"control_rate is 'ten' \(str\); expected a number"),
        ({"control_rate": True}, "expected a number"),
        ({"control_rate": 0}, "expected Hz > 0"),
        ({"control_rate": None}, r"\(null\); expected a number"),
        ({"image_size": [64]}, "expected a list of 2 entries, each a whole number"),
        ({"image_size": [64, 64.5]}, r"image_size\[1\] is '64.5'"),
        ({"image_size": [4, 64]}, r"in \[8, 1024\]"),
        ({"action_aggregation": "median"}, "expected one of last, first, mean, sum"),
        ({"splits": {"val": 1.0}}, "splits.val is 1.0"),
        ({"splits": {"val": 0.5, "test": 0.5}}, "nothing is left"),
        ({"splits": {"seed": True}}, "expected a whole number"),
        ({"splits": {"folds": 1}}, "splits.folds is 1; expected 2 or more"),
        ({"splits": {"folds": 5, "fold": 5}}, "splits.fold is 5 of 5 folds"),
        ({"splits": {"fold": 1}}, "splits.fold is 1 of 0 folds"),
        ({"splits": {"folds": 5, "test": 0.3}}, "splits.test is 0.3 beside folds: 5"),
        ({"splits": {"folds": 5, "recorded": True}}, "splits.folds and recorded are two ways"),
        ({"splits": 3}, "splits is '3'"),
        ({"quality": {"min_steps": 1}}, "quality.min_steps is 1"),
        ({"quality": {"strict": "yes"}}, "expected true or false"),
        ({"name": "a/b"}, "name is 'a/b'"),
        (
            {"source": {"type": "gymnasium", "env_id": "os:system", "state": "x"}},
            "module to import",
        ),
        (
            {"source": {"type": "gymnasium", "env_id": "A-v0", "state": "x", "policy": "p"}},
            "policy",
        ),
    ],
)
def test_wrong_values_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as raised:
        parse_recipe(values(**changes), origin="my.yaml")
    assert str(raised.value).startswith("my.yaml: ")


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not exist"):
        load_recipe(tmp_path / "missing.yaml")
    path = tmp_path / "bad.yaml"
    path.write_text("name: [1, 2\n")
    with pytest.raises(RecipeError, match=r"bad\.yaml cannot be read"):
        load_recipe(path)
    path.write_text("- 1\n- 2\n")
    with pytest.raises(RecipeError, match="expected keys and values"):
        load_recipe(path)
    path.write_text("name: a\nname: b\n")
    with pytest.raises(RecipeError, match="duplicate key"):
        load_recipe(path)
    path.write_text("name: ${nothing}\n")
    with pytest.raises(RecipeError, match=r"bad\.yaml: name = .*nothing.* fills nothing in"):
        load_recipe(path)
    with pytest.raises(RecipeError, match="expected key=value"):
        load_recipe(RECIPES / "pusht.yaml", ["seed"])


def test_splits_are_a_pure_function_of_keys_and_seed() -> None:
    keys = [f"episode_{index:06d}" for index in range(50)]
    splits = split_keys(keys, SplitConfig(val=0.1, test=0.2, seed=0))
    assert splits == split_keys(reversed(keys), SplitConfig(val=0.1, test=0.2, seed=0))
    assert splits != split_keys(keys, SplitConfig(val=0.1, test=0.2, seed=1))
    counts = [list(splits.values()).count(name) for name in ("train", "val", "test")]
    assert counts == [35, 5, 10]


@pytest.mark.parametrize("num_episodes", [5, 6, 7, 23, 24])
def test_over_all_folds_every_episode_is_held_out_once(num_episodes: int) -> None:
    keys = [f"episode_{i}" for i in range(num_episodes)]
    folds = [split_keys(keys, SplitConfig(val=0.1, folds=5, fold=fold)) for fold in range(5)]
    held_out = [{key for key, split in one.items() if split == "test"} for one in folds]
    assert sorted(key for one in held_out for key in one) == sorted(keys)
    sizes = [len(one) for one in held_out]
    assert max(sizes) - min(sizes) <= 1
    for one in folds:
        names = list(one.values())
        assert set(one) == set(keys) and names.count("val") == max(1, round(0.1 * num_episodes))
    again = split_keys(reversed(keys), SplitConfig(val=0.1, folds=5, fold=2))
    assert again == folds[2]
    assert split_keys(keys, SplitConfig(folds=5, fold=2, seed=1)) != folds[2]


def test_a_fold_is_recorded_and_nothing_else_is_changed(tmp_path: Path) -> None:
    """Recipes without folds are recorded as before, so that datasets of them stay finished."""
    plain = {"type": "videos", "path": "x"}
    recipe = parse_recipe({"name": "a", "source": plain, "control_rate": 10})
    assert set(recipe.to_dict()["splits"]) == {"val", "test", "seed", "recorded"}
    splits = {"val": 0.0, "folds": 4, "fold": 3}
    recipe = parse_recipe({"name": "a", "source": plain, "control_rate": 10, "splits": splits})
    recorded = recipe.to_dict()["splits"]
    assert (recorded["test"], recorded["folds"], recorded["fold"]) == (0.25, 4, 3)
    assert SplitConfig(**recorded) == recipe.splits  # what was recorded can be read again


def test_every_split_gets_an_episode() -> None:
    splits = split_keys(["a", "b", "c"], SplitConfig(val=0.01, test=0.01))
    assert sorted(splits.values()) == ["test", "train", "val"]
    assert set(split_keys(["a"], SplitConfig(val=0.0, test=0.0)).values()) == {"train"}
    with pytest.raises(RecipeError, match=r"2 episode\(s\) cannot be divided"):
        split_keys(["a", "b"], SplitConfig())
    with pytest.raises(RecipeError, match=r"4 episode\(s\) cannot be divided into 5 folds"):
        split_keys("abcd", SplitConfig(folds=5))


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("licence: ${oc.env:TOKENWM_TEST_SECRET}", []),
        ("licence: a ${oc.env:TOKENWM_TEST_SECRET} b", []),
        ("licence: ${oc.decode:${oc.env:TOKENWM_TEST_SECRET}}", []),
        ("quality: {min_steps: '${oc.env:TOKENWM_TEST_SECRET}'}", []),
        ("'${oc.env:TOKENWM_TEST_SECRET}': 1", []),
        ("", ["licence=${oc.env:TOKENWM_TEST_SECRET}"]),
        ("", ["source.state=[a,'${oc.env:TOKENWM_TEST_SECRET}']"]),
        ("licence: ${name}", []),
    ],
)
def test_a_recipe_cannot_read_the_environment(
    text: str, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENWM_TEST_SECRET", "hunter2")
    path = tmp_path / "stranger.yaml"
    source = "source: {type: lerobot, path: x}"
    path.write_text(f"name: a\ncontrol_rate: 10\n{source}\n{text}\n")
    with pytest.raises(RecipeError, match=r"stranger.yaml: .*\$\{.*fills nothing in") as error:
        load_recipe(path, overrides)
    assert "hunter2" not in str(error.value)
