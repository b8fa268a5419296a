"""A number is a number in every YAML that people write, however it is noted down."""

from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import yaml

from tests.unit.scaling.sweeps import small_sweep
from tokenwm.cli.verbs.sweep_plan import _training
from tokenwm.data.recipes.recipe import load_recipe
from tokenwm.data.recipes.starter import _yaml
from tokenwm.errors import RecipeError
from tokenwm.scaling.sweep.sweep import load_sweep, sweep_text
from tokenwm.strict import dump_yaml, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-2", 0.02),
        ("2E-2", 0.02),
        ("1e3", 1000.0),
        ("-3e+4", -30000.0),
        ("2.e-2", 0.02),
        (".5e3", 500.0),
        ("1.5", 1.5),
        ("[1e-3, 2]", [0.001, 2]),
        ("'2e-2'", "2e-2"),
        ("1e", "1e"),
        ("e3", "e3"),
        ("2e-2x", "2e-2x"),
        ("12e3.5", "12e3.5"),
    ],
)
def test_notations_of_numbers(text: str, value: Any) -> None:
    found = parse_yaml(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("value", ["2e-2", "1e6", 0.02, 1e6, 3, "3", "on", [1e-5, "1e-5"], None])
def test_what_is_written_is_read(value: Any) -> None:
    assert parse_yaml(dump_yaml({"key": value})) == {"key": value}


def test_no_object_of_python_is_made() -> None:
    with pytest.raises(yaml.YAMLError):
        parse_yaml("!!python/object/apply:os.getcwd []")


def test_sweeps_recipes_options_and_training_configs_read_them(tmp_path: Path) -> None:
    text = sweep_text(small_sweep())
    values = yaml.safe_load(text)
    values["sizes"][0]["learning_rate"] = 0.02
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(values).replace("learning_rate: 0.02", "learning_rate: 2e-2"))
    assert "2e-2" in path.read_text()
    assert load_sweep(path).sizes[0].learning_rate == 0.02
    assert _training(["weight_decay=2e-2"]).weight_decay == 0.02

    values["sizes"][0]["token_budgets"] = [123456, 234567]
    path.write_text(yaml.safe_dump(values).replace("123456", "1e5").replace("234567", "2.5e5"))
    assert load_sweep(path).sizes[0].token_budgets == (100_000, 250_000)

    path = tmp_path / "recipe.yaml"
    path.write_text("name: a\nsource: {type: lerobot, path: x}\ncontrol_rate: 1e1\n")
    assert load_recipe(path).control_rate == 10.0
    assert load_recipe(path, ["control_rate=2e-2"]).control_rate == 0.02
    assert load_recipe(path, ["splits.seed=1e3"]).splits.seed == 1000
    with pytest.raises(RecipeError, match="expected a whole number"):
        load_recipe(path, ["splits.seed=15e-1"])

    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_argument("--rate", type=float)
    (tmp_path / "training.yaml").write_text("rate: 2e-2\n")
    assert parser.parse_args([f"--config={tmp_path / 'training.yaml'}"]).rate == 0.02
    assert parser.parse_args(["--rate=2e-2"]).rate == 0.02


def test_a_name_that_looks_like_a_number_stays_a_name_in_a_starter_recipe() -> None:
    assert parse_yaml(_yaml("2e-2")) == "2e-2"
