"""A recipe to begin with, for what :mod:`tokenwm.data.recipes.survey` found."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tokenwm.data.readers.columns.columns import AUTO, RecordedConfig
from tokenwm.data.readers.one_episode import writable
from tokenwm.data.recipes.recipe import SplitConfig, split_keys
from tokenwm.data.recipes.survey import IMAGE_SIZE, Survey
from tokenwm.errors import RecipeError
from tokenwm.strict import parse_yaml

TEST_EPISODES = 6
"""Test episodes that a recipe proposes at least, as an evaluation makes no claim on fewer."""
FOLDS = 5
PLAIN_TEXT = re.compile(r"[A-Za-z0-9_./ -]+")


def starter_recipe(found: Survey) -> str:
    """A recipe that ``tokenwm prepare`` takes as it is: YAML with comments.

    What the survey found unclear is commented out, with the candidates; ``prepare`` asks for it.

    Raises:
        RecipeError: No episode can be used, or a name cannot be written into a recipe.
    """
    config = found.source.config
    path = Path(config.paths[0])
    for text in (*(str(Path(item).resolve()) for item in config.paths), *found.source.columns):
        if writable(text) != text:
            raise RecipeError(f"{text!a} is no UTF-8, which a recipe is; rename it")
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", path.resolve().stem).strip("_")
    rate = found.rate
    possible = "" if rate is None else ", ".join(f"{rate / n:g}" for n in (1, 2, 3, 5))
    why = f"the source has {rate:g}; possible are {possible}, …" if rate else "not recorded: set it"
    notes = {
        option: f"  # a guess among {_yaml(list(columns))}"
        for option, columns in found.ambiguous.items()
    }
    lines = [
        "# Written by `tokenwm inspect`; every choice can be changed. Reference: docs/recipes.md",
        f"name: {_yaml(name or 'dataset')}",
        "source:",
        f"  type: {_yaml(getattr(config, 'type', ''))}",
        f"  path: {_yaml(str(Path(config.paths[0]).resolve()))}",
        f"  cameras: {_yaml(found.source.cameras)}",
        *_columns(found, notes),
        _action_kind(found),
        *_other_options(config, notes),
        '  state_units: ""                 # for example rad; stored with the data',
        '  action_units: ""',
        f"control_rate: {found.control_rate:.12g}                  # Hz; {why}",
        "action_aggregation: last          # last for targets, sum for differences, stack for all",
        f"image_size: {_yaml(list(IMAGE_SIZE))}              # height, width",
        _splits(found),
        f"licence: {_yaml(found.licence or 'unknown')}",
    ]
    return "\n".join(lines) + "\n"


def _columns(found: Survey, notes: dict[str, str]) -> list[str]:
    """Lines for state, action and reward."""
    config = found.source.config
    if "action" in found.unclear and config.state is None:
        candidates = _yaml(list(found.unclear["action"]))
        notes = {**notes, "state": f"  # or some of {candidates}"}
    lines = []
    for option in ("state", "action", "reward"):
        if option in found.unclear:
            lines += [
                f"  # No column is plainly the {option}. Keep those that are, in order, and remove "
                "the '# ' before it:",
                f"  # {option}: {_yaml(list(found.unclear[option]))}",
            ]
        else:
            lines.append(f"  {option}: {_yaml(getattr(config, option))}{notes.get(option, '')}")
    return lines


def _action_kind(found: Survey) -> str:
    """Line with the kind of the actions and what decided it; for the reader to overrule."""
    decision = found.source.action_kind
    # A name of a column may hold anything, also the end of a line.
    why = "".join(character if character.isprintable() else "?" for character in decision.why)
    if "action" in found.unclear:
        return f"  action_kind: {AUTO}  # discrete or continuous; {decision.kind} if all are: {why}"
    return f"  action_kind: {decision.kind}  # discrete (ids) or continuous; {why}"


def _other_options(config: RecordedConfig, notes: dict[str, str]) -> list[str]:
    """Lines for the options of one reader only, where they are not the default."""
    common = {item.name for item in dataclasses.fields(RecordedConfig)} | {"type"}
    return [
        f"  {item.name}: {_yaml(getattr(config, item.name))}{notes.get(item.name, '')}"
        for item in dataclasses.fields(config)
        if item.name not in common and getattr(config, item.name) != item.default
    ]


def _splits(found: Survey) -> str:
    """The line of the splits: as the source records them, else with a good episode in each.

    Where there are enough of them, so many are held out that an evaluation can make claims.
    """
    keys = [ref.key for ref in found.refs]
    good = len(keys) - len(found.problems)
    if good < 1:
        reason = next(iter(found.problems.values()), "it has none")
        raise RecipeError(f"no episode of {found.source.config.paths[0]} can be used: {reason}")
    if any(ref.split not in ("", "train") for ref in found.refs):
        return "splits: {recorded: true}"
    values, num_test, why = _proportions(good)

    def leaves_enough(splits: SplitConfig) -> bool:
        split_of = split_keys(keys, splits)
        left = Counter(split for key, split in split_of.items() if key not in found.problems)
        return set(left) == set(split_of.values()) and left["test"] >= num_test

    for seed in range(100):
        every = [{**values, "fold": fold} for fold in range(values.get("folds", 1))]
        if all(leaves_enough(SplitConfig(**one, seed=seed)) for one in every):
            break
    return f"splits: {_yaml({**values, 'seed': seed})}{why}"


def _proportions(num_episodes: int) -> tuple[dict[str, Any], int, str]:
    """Values of ``splits`` for so many episodes, the test episodes that makes, and a comment.

    Below ``TEST_EPISODES`` in the test split an evaluation claims nothing with confidence.
    """
    val = 0.1
    if num_episodes < 3:
        return {"val": 0.1 * (num_episodes == 2), "test": 0.0}, 0, ""
    num_val = max(1, round(val * num_episodes))
    if round(0.1 * num_episodes) >= TEST_EPISODES:
        return {"val": val, "test": 0.1}, TEST_EPISODES, ""
    if num_episodes - num_val - TEST_EPISODES >= 2 / 3 * num_episodes:
        share = math.ceil(1000 * TEST_EPISODES / num_episodes) / 1000
        why = f"  # {TEST_EPISODES} test episodes: evaluate claims nothing with confidence on fewer"
        return {"val": val, "test": share}, TEST_EPISODES, why
    if num_episodes < TEST_EPISODES:
        why = f"  # too few to show anything: evaluate takes {TEST_EPISODES} test episodes for that"
        return {"val": val, "test": 0.1}, 1, why
    why = (
        f"  # too few to hold {TEST_EPISODES} out at once: hold all out in turn, once each with "
        f"--set splits.fold=0 … {FOLDS - 1} (docs/evaluation.md)"
    )
    return {"val": val, "folds": FOLDS, "fold": 0}, 1, why


def _yaml(value: Any) -> str:
    """A value on one line of YAML, whatever characters a stranger's names hold."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_yaml(k)}: {_yaml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, str) and PLAIN_TEXT.fullmatch(value) and parse_yaml(value) == value:
        return value
    style = '"' if isinstance(value, str) else None
    text = yaml.safe_dump(value, default_style=style, allow_unicode=True, width=math.inf)
    return str(text).removesuffix("...\n").strip()
