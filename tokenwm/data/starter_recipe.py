"""A recipe to begin with, for what :mod:`tokenwm.data.survey` found."""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tokenwm.data.one_episode import writable
from tokenwm.data.recipe import SplitConfig, split_keys
from tokenwm.data.sources.columns import AUTO, RecordedConfig
from tokenwm.data.strict import parse_yaml
from tokenwm.data.survey import IMAGE_SIZE, Survey
from tokenwm.errors import RecipeError

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
        "# Written by `tokenwm inspect`; every choice can be changed. Reference: docs/data.md",
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
        "action_aggregation: last          # last for targets, sum for differences",
        f"image_size: {_yaml(list(IMAGE_SIZE))}              # height, width",
        f"splits: {_yaml(_splits(found))}",
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
    """What was decided about the action, and why; for the reader to overrule."""
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


def _splits(found: Survey) -> dict[str, Any]:
    """As the source records it, else fractions and a seed that leave a good episode in each."""
    keys = [ref.key for ref in found.refs]
    good = len(keys) - len(found.problems)
    if good < 1:
        reason = next(iter(found.problems.values()), "it has none")
        raise RecipeError(f"no episode of {found.source.config.paths[0]} can be used: {reason}")
    if any(ref.split not in ("", "train") for ref in found.refs):
        return {"recorded": True}
    val, test = (0.1, 0.1) if good >= 3 else (0.1 * (good == 2), 0.0)
    for seed in range(100):
        split_of = split_keys(keys, SplitConfig(val=val, test=test, seed=seed))
        left = {split for key, split in split_of.items() if key not in found.problems}
        if left == set(split_of.values()):
            break
    return {"val": val, "test": test, "seed": seed}


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
