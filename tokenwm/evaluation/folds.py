"""Several models, each with the episodes held out from it, measured as one (cross-validation)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenwm.data.shards.manifest import Manifest
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.parent import data_known_to


@dataclass(frozen=True, kw_only=True)
class Fold:
    """A model, and the data some episodes of which were held out from it.

    Attributes:
        model: From :func:`tokenwm.load`; it stays on its device.
        data: Folder of frame shards, as ``tokenwm prepare`` writes it.
        model_folder: Where the model came from, for messages and the record.
    """

    model: TokenWorldModel
    data: Path | str
    model_folder: Path | str | None = None

    @property
    def name(self) -> str:
        """The model in messages."""
        return "the model" if self.model_folder is None else str(self.model_folder)


def check_folds(folds: Sequence[Fold], readers: Sequence[ShardReader]) -> None:
    """Check that several models are one configuration, trained and tested on folds of one source.

    Raises:
        TokenwmError: They differ in more than the fold, or a model may have been trained on the
            episodes that it is to be tested on.
    """
    if not folds:
        raise TokenwmError("no model to measure")
    if len(folds) == 1:
        return
    first = _configuration(folds[0].model)
    for fold in folds[1:]:
        other = _configuration(fold.model)
        different = [name for name in first if first[name] != other[name]]
        if different:
            raise TokenwmError(
                f"{folds[0].name} and {fold.name} differ in {', '.join(different)}; models of "
                "several folds are averaged, so train all with the same options"
            )
    source = _without_fold(readers[0].manifest.provenance)
    for fold, reader in zip(folds, readers, strict=True):
        provenance = reader.manifest.provenance
        if _without_fold(provenance) != source:
            raise TokenwmError(
                f"{folds[0].data} and {fold.data} are not folds of one dataset: source or recipe "
                "differ in more than splits.fold; prepare all from one recipe"
            )
        trained_on = fold.model.provenance.get("data_provenance", provenance)
        is_other = "data_mixture" not in fold.model.provenance and trained_on != provenance
        if is_other or has_other_splits(fold.model, reader.manifest):
            raise TokenwmError(
                f"{fold.name} was trained on another dataset than {fold.data}, so it may know the "
                "episodes held out there; give each model with its own data, in the same order"
            )


def check_held_out_once(keys: Sequence[Sequence[str]], folds: Sequence[Fold]) -> None:
    """Check that no episode is measured twice.

    Args:
        keys: The episodes that are measured, of each fold.
        folds: All folds.

    Raises:
        TokenwmError: An episode is held out in two of them.
    """
    seen: dict[str, Fold] = {}
    for of_fold, fold in zip(keys, folds, strict=True):
        for key in of_fold:
            if key in seen:
                raise TokenwmError(
                    f"episode {key} is held out in both {seen[key].data} and {fold.data}; an "
                    "episode may be measured once: prepare each with another splits.fold of the "
                    "same splits.folds and splits.seed"
                )
            seen[key] = fold


def has_other_splits(model: TokenWorldModel, manifest: Manifest) -> bool:
    """True if a dataset is the model's own source divided otherwise, or its parent's.

    Episodes that are held out here may then be among those that the model was trained on.
    """
    known = data_known_to(model.provenance)
    return any(_divides_otherwise(trained_on, manifest.provenance) for trained_on in known)


def _divides_otherwise(trained_on: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    if trained_on.get("source_checksum") is None:
        return False
    if trained_on["source_checksum"] != now.get("source_checksum"):
        return False
    before, after = (_recipe(provenance).get("splits", {}) for provenance in (trained_on, now))
    # Older datasets do not name every key; without folds none does.
    names = (before.keys() & after.keys()) | {"folds", "fold"}
    return any(before.get(name, 0) != after.get(name, 0) for name in names)


def _recipe(provenance: Mapping[str, Any]) -> dict[str, Any]:
    return dict(provenance.get("recipe", {}))


def _configuration(model: TokenWorldModel) -> dict[str, Any]:
    """All that must be the same; bins and weights follow the training data and may differ."""
    vocabulary = model.vocabulary
    scalars = [vocabulary.action, vocabulary.state]
    return {
        "sizes of the world model": model.world_model.config,
        "sizes of the tokenizer": model.tokenizer.config,
        "image size": model.tokenizer.image_size,
        "cameras": model.cameras,
        "control rate": model.control_rate,
        "bins of actions or states": [
            None if item is None else (type(item), item.num_dimensions, item.num_values)
            for item in scalars
        ],
    }


def _without_fold(provenance: Any) -> Any:
    """Provenance of a dataset without the one key that folds differ in."""
    recipe = _recipe(provenance)
    splits = {name: value for name, value in recipe.get("splits", {}).items() if name != "fold"}
    return {**provenance, "recipe": {**recipe, "splits": splits}}
