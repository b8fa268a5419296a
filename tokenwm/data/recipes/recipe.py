"""Recipes: one YAML file that says how a source of episodes becomes a dataset.

Reading is strict. An unknown key, a wrong type or an impossible value is a :class:`RecipeError`
that names the file, the key, and what is allowed; nothing is guessed and no key is ignored.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tokenwm.data.episode import NAME_PATTERN
from tokenwm.data.quality.checks import QualityConfig
from tokenwm.data.readers.base import (
    EpisodeFormat,
    EpisodeRef,
    Source,
    SourceConfig,
    source_config_class,
)
from tokenwm.data.readers.columns.columns import RecordedConfig
from tokenwm.data.readers.downsample import Aggregation
from tokenwm.data.readers.pictures.video import Resize
from tokenwm.data.readers.recorded.several import open_recorded
from tokenwm.errors import RecipeError, TokenwmError
from tokenwm.strict import build, plain, show

UNKNOWN = "unknown"
"""A licence that nobody states."""


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """The division of episodes into splits; whole episodes, never steps.

    With folds every episode is held out for the test in one of them; see ``docs/evaluation.md``.

    Attributes:
        val: Fraction of the episodes for validation, in [0, 1).
        test: Fraction for the final evaluation, in [0, 1); ``val + test < 1``. With folds it is
            ``1 / folds``.
        seed: Changes which episodes go where.
        folds: Parts that the episodes are divided into, at least 2; 0 for none.
        fold: Which of the parts is the test split, counted from 0.
        recorded: Take the splits that the source records, if it holds some episodes out (LeRobot's
            ``splits``); the fractions are for a source that does not.
    """

    val: float = 0.1
    test: float = 0.1
    seed: int = 0
    folds: int = 0
    fold: int = 0
    recorded: bool = False

    def __post_init__(self) -> None:
        if self.folds < 0 or self.folds == 1:
            raise RecipeError(f"folds is {self.folds}; expected 2 or more, or 0 for none")
        if not 0 <= self.fold < max(1, self.folds):
            raise RecipeError(
                f"fold is {self.fold} of {self.folds} folds; expected a number from 0 to below "
                "splits.folds"
            )
        if self.folds and self.recorded:
            raise RecipeError("folds and recorded are two ways to divide; give one of them")
        if self.folds:
            share = 1.0 / self.folds
            if self.test != SplitConfig.test and abs(self.test - share) > 0.005:
                raise RecipeError(
                    f"test is {self.test:g} beside folds: {self.folds}; the fold is the test "
                    f"split, so leave splits.test out or set it to {share:.3g}"
                )
            object.__setattr__(self, "test", share)
        for name, value in (("val", self.val), ("test", self.test)):
            if not 0 <= value < 1:
                raise RecipeError(f"{name} is {value}; expected a fraction in [0, 1)")
        if self.val + self.test >= 1:
            raise RecipeError(f"val + test is {self.val + self.test:g}; nothing is left for train")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything ``tokenwm prepare`` needs to know.

    Attributes:
        name: Name of the dataset; letters, digits, ``_`` and ``-``.
        source: Options of the reader; ``type`` chooses it.
        control_rate: Steps per second of the dataset, Hz; divides the source's rate.
        action_aggregation: What becomes of the actions between two kept steps.
        all_phases: Whether every training episode is kept once for each row that downsampling may
            begin at; for few episodes, of which ``f`` times as many rows are used then.
        image_size: ``[height, width]`` of frames, pixels, each in [8, 1024].
        resize: ``crop`` (centre, to the aspect ratio) or ``stretch``.
        splits: How episodes are divided; left out, as the source records it, else by fractions.
        licence: Licence of the data; travels with every dataset made from it. ``unknown`` takes
            the one that the data states, if it does.
        quality: Limits of the quality rules.
        folder: Folder of the recipe file, for relative paths; not a key of the file.
    """

    name: str
    source: SourceConfig
    control_rate: float
    action_aggregation: Aggregation = "last"
    all_phases: bool = False
    image_size: tuple[int, int] = (64, 64)
    resize: Resize = "crop"
    splits: SplitConfig = field(default_factory=lambda: SplitConfig(recorded=True))
    licence: str = UNKNOWN
    quality: QualityConfig = field(default_factory=QualityConfig)
    folder: Path | None = field(default=None, metadata={"key": False})

    def __post_init__(self) -> None:
        if not NAME_PATTERN.fullmatch(self.name):
            raise RecipeError(f"name is {self.name!r}; letters, digits, '_' and '-' only")
        if not self.control_rate > 0:
            raise RecipeError(f"control_rate is {self.control_rate}; expected Hz > 0")
        if not all(8 <= size <= 1024 for size in self.image_size):
            raise RecipeError(
                f"image_size is {list(self.image_size)}; expected [height, width] in [8, 1024]"
            )

    @property
    def records(self) -> bool:
        """True if the source is a simulator, which records as much as is asked for."""
        return self.source.records

    def open_source(self) -> Source:
        """Open the source of episodes.

        Raises:
            SourceError: The data is missing or not laid out as expected.
            RecipeError: The recipe does not fit the data.
        """
        episode_format = EpisodeFormat(
            control_rate=self.control_rate,
            action_aggregation=self.action_aggregation,
            image_size=self.image_size,
            resize=self.resize,
            quality=self.quality,
        )
        if isinstance(self.source, RecordedConfig):
            return open_recorded(self.source, episode_format, self.folder)
        return self.source.open(episode_format, self.folder)

    def to_dict(self) -> dict[str, Any]:
        """The recipe with all defaults filled in, as plain JSON values, for the manifest."""
        values: dict[str, Any] = plain(self)
        del values["folder"]
        if not self.splits.folds:  # as datasets had it before there were folds
            del values["splits"]["folds"], values["splits"]["fold"]
        return values


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file.

    Args:
        path: YAML file.
        overrides: ``key=value`` pairs with dotted keys, applied on top of the file.

    Raises:
        RecipeError: The file is missing or is no YAML, or has an unknown key or a wrong value.
    """
    path = Path(path)
    if path.is_dir():
        raise RecipeError(
            f"recipe {path} is a folder; `tokenwm inspect {path} --recipe my_robot.yaml` writes a "
            "recipe for the recordings in it"
        )
    try:
        config: Any = OmegaConf.load(path)
        if not OmegaConf.is_dict(config):
            raise RecipeError(f"{path} holds no keys; expected keys and values")
        for override in overrides:
            if "=" not in override:
                raise RecipeError(
                    f"--set {override!r}: expected key=value; one with spaces needs quotes"
                )
            try:
                config = OmegaConf.merge(config, OmegaConf.from_dotlist([override]))
            except yaml.YAMLError:
                raise RecipeError(
                    f"--set {override!r}: the value is not valid YAML; one with spaces needs quotes"
                ) from None
        # Never resolved: what a stranger's recipe names, an environment variable for example, would
        # be published with the dataset.
        values = OmegaConf.to_container(config, resolve=False, throw_on_missing=True)
        reference = next(_references(values), None)
        if reference is not None:
            raise RecipeError(
                f"{path}: {reference}: a recipe fills nothing in, no ${{NAME}} and no "
                "${oc.env:NAME}; write the value itself"
            )
    except FileNotFoundError:
        raise RecipeError(f"recipe {path} does not exist") from None
    except (OSError, yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"recipe {path} cannot be read: {error}") from error
    return parse_recipe(values, origin=str(path), folder=path.resolve().parent)


def parse_recipe(values: Any, *, origin: str = "recipe", folder: Path | None = None) -> Recipe:
    """Turn plain values into a :class:`Recipe`.

    Args:
        values: Plain values of the YAML file.
        origin: Name of the file, for messages.
        folder: Where relative paths start if not in the current directory.

    Raises:
        RecipeError: An unknown key, a wrong type or an impossible value.
    """
    try:
        if not isinstance(values, Mapping):
            raise RecipeError(f"the file is {show(values)}; expected keys and values")
        source = values.get("source")
        if not isinstance(source, Mapping) or "type" not in source:
            raise RecipeError("source needs keys and values, of them 'type' chooses the reader")
        config_class = source_config_class(source["type"])
        source = build(config_class, source, "source", allow_defaults=True)
        recipe: Recipe = build(Recipe, {**values, "source": source}, allow_defaults=True)
    except TokenwmError as error:
        raise RecipeError(f"{origin}: {error}") from error
    return dataclasses.replace(recipe, folder=folder)


def takes_recorded(refs: Iterable[EpisodeRef], splits: SplitConfig) -> bool:
    """True if the splits are those that the source records."""
    return splits.recorded and any(ref.split not in ("", "train") for ref in refs)


def split_episodes(refs: Sequence[EpisodeRef], splits: SplitConfig) -> dict[str, str]:
    """Divide the episodes of a source into the splits: as it records them, else by fractions.

    Args:
        refs: All episodes.
        splits: The recipe's splits.

    Returns:
        Key → split.

    Raises:
        RecipeError: There are too few episodes, or the recorded splits leave none for training.
    """
    recorded = {ref.key: ref.split or "train" for ref in refs}
    if not takes_recorded(refs, splits):
        return split_keys(recorded, splits)
    if "train" not in recorded.values():
        raise RecipeError(
            f"splits: the source records {', '.join(sorted(set(recorded.values())))} for the "
            f"{len(recorded)} episode(s) and none for train; give splits.val and splits.test"
        )
    return recorded


def split_keys(keys: Iterable[str], splits: SplitConfig) -> dict[str, str]:
    """Divide episodes into the splits: a pure function of the keys and the seed.

    Args:
        keys: Keys of all episodes, in any order.
        splits: Fractions, or folds, and seed. A fraction above zero gives at least one episode.

    Returns:
        Key → split.

    Raises:
        RecipeError: There are too few episodes.
    """
    ranked = sorted(keys, key=lambda key: hashlib.sha256(f"{splits.seed}:{key}".encode()).digest())
    num_val = max(1, round(splits.val * len(ranked))) if splits.val else 0
    if splits.folds:
        if len(ranked) < splits.folds:
            raise RecipeError(
                f"splits: {len(ranked)} episode(s) cannot be divided into {splits.folds} folds; "
                "set splits.folds to no more than there are episodes"
            )
        test = ranked[splits.fold :: splits.folds]
        num_test = len(test)
        ranked = [key for key in ranked if key not in test]
        ranked = ranked[:num_val] + test + ranked[num_val:]
    else:
        num_test = max(1, round(splits.test * len(ranked))) if splits.test else 0
    if num_val + num_test >= len(ranked):
        raise RecipeError(
            f"splits: {len(ranked)} episode(s) cannot be divided into train, {num_val} val and "
            f"{num_test} test; record more episodes or set splits.val or splits.test to 0"
        )
    names = ["val"] * num_val + ["test"] * num_test
    names += ["train"] * (len(ranked) - len(names))
    return dict(zip(ranked, names, strict=True))


def _references(value: Any, place: str = "") -> Iterator[str]:
    """Places of the texts and keys that OmegaConf would fill in."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            below = f"{place}.{key}" if place else str(key)
            if "${" in str(key):
                yield below
            yield from _references(item, below)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _references(item, f"{place}[{index}]")
    elif isinstance(value, str) and "${" in value:
        yield f"{place} = {value[:60]!r}"
