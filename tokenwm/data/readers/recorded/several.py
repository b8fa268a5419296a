"""Several folders of one format as one source: ``source.path`` as a list."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenwm.data.episode import Episode
from tokenwm.data.readers.base import EpisodeFormat, EpisodeRef, Gap, Source, SourceDescription
from tokenwm.data.readers.columns.columns import RecordedConfig, names_of
from tokenwm.data.readers.keys import LONGEST_KEY, plain_name
from tokenwm.data.readers.recorded.action_kind import ActionKind
from tokenwm.data.readers.recorded.recording import RecordedSource
from tokenwm.errors import EpisodeError, RecipeError


def open_recorded(
    config: RecordedConfig, episode_format: EpisodeFormat, folder: Path | None
) -> Source:
    """Open what ``source.path`` names, one folder or several.

    Raises:
        SourceError: One is missing, or not laid out as expected.
        RecipeError: The options do not fit one of them, or they do not go together.
    """
    paths = config.paths
    if len(paths) == 1:
        return config.at(paths[0]).open(episode_format, folder)
    # An option of some readers, which names episodes of one folder.
    if getattr(config, "episodes", None) is not None:
        raise RecipeError(
            f"source.episodes names episodes by their number in a folder, and source.path names "
            f"{len(paths)} folders; leave source.episodes out"
        )
    parts = []
    for path in paths:
        part = config.at(path).open(episode_format, folder)
        assert isinstance(part, RecordedSource), "a reader of recordings gives such a source"
        parts.append(part)
    return SeveralSource(paths, parts)


class SeveralSource:
    """The episodes of several folders, one folder after the other.

    Episodes keep their keys where no two folders have the same; else every key begins with the name
    of its folder. Actions are of one kind in all folders: ids only if they are ids in each.

    Args:
        paths: As the recipe names them.
        parts: The opened folders.

    Raises:
        RecipeError: Two differ in rate, columns, dimensions or names.
    """

    def __init__(self, paths: Sequence[str], parts: Sequence[RecordedSource]) -> None:
        self.paths, self.parts = tuple(paths), tuple(parts)
        if len({part.where for part in self.parts}) < len(self.parts):
            raise RecipeError(f"source.path names one folder twice: {', '.join(self.paths)}")
        for path, part in zip(self.paths[1:], self.parts[1:], strict=True):
            _check_alike((self.paths[0], self.parts[0]), (path, part))
        self.num_phases = self.parts[0].num_phases
        kinds = [part.action_kind for part in self.parts]
        if len({kind.kind for kind in kinds}) > 1:
            place = next(i for i, kind in enumerate(kinds) if kind.kind == "continuous")
            why = f"in {self.paths[place]}: {kinds[place].why}"
            for part in self.parts:
                part.action_kind = ActionKind(kind="continuous", why=why)
        self._refs: list[EpisodeRef] = []
        self._places: list[tuple[int, EpisodeRef]] = []
        of_parts = [part.episodes() for part in self.parts]
        every = Counter(ref.key for refs in of_parts for ref in refs)
        prefixes = _prefixes(self.paths) if max(every.values(), default=0) > 1 else None
        for number, refs in enumerate(of_parts):
            for ref in refs:
                key = ref.key if prefixes is None else f"{prefixes[number]}-{ref.key}"
                if len(key) > LONGEST_KEY:
                    key = f"folder_{number}-{ref.key}"
                self._refs.append(dataclasses.replace(ref, key=key, index=len(self._refs)))
                self._places.append((number, ref))

    def episodes(self) -> Sequence[EpisodeRef]:
        """All episodes, folder by folder."""
        return list(self._refs)

    def gaps(self) -> Sequence[Gap]:
        """Gaps of all folders."""
        return [gap for part in self.parts for gap in part.gaps()]

    def load(self, ref: EpisodeRef) -> Episode:
        """Load one episode; its metadata name the folder.

        Raises:
            EpisodeError: This episode breaks a rule; the others may be fine.
        """
        number, own = self._places[ref.index]
        try:
            episode = self.parts[number].load(dataclasses.replace(own, phase=ref.phase))
        except EpisodeError as error:
            raise EpisodeError(f"{self.paths[number]}: {error}") from error
        metadata = {**episode.metadata, "source_folder": self.paths[number]}
        return dataclasses.replace(episode, key=ref.key, metadata=metadata)

    def describe(self) -> SourceDescription:
        """Names and units, which all folders share, and every licence."""
        every = [part.describe() for part in self.parts]
        licences = dict.fromkeys(about.licence for about in every if about.licence)
        return dataclasses.replace(every[0], licence="; ".join(licences))

    def provenance(self) -> dict[str, Any]:
        """That of each folder under ``sources``, and one checksum over all of theirs."""
        every = [part.provenance() for part in self.parts]
        content = json.dumps([about["source_checksum"] for about in every])
        return {
            "source": ", ".join(self.paths),
            "source_checksum": hashlib.sha256(content.encode()).hexdigest(),
            "source_checksum_over": "the checksums of all sources, in order",
            "sources": every,
        }


def _check_alike(first: tuple[str, RecordedSource], other: tuple[str, RecordedSource]) -> None:
    """Check that two folders record the same.

    Raises:
        RecipeError: They do not; names the folders and what differs.
    """
    described = []
    for _, source in (first, other):
        config = source.config
        facts: dict[str, Any] = {"rate": source.rate, "cameras": source.cameras}
        facts["actions_per_step"] = source.describe().actions_per_step
        for option in ("state", "action", "reward", "task_state"):
            names = names_of(getattr(config, option))
            facts[option] = ", ".join(names) or "none"
            shapes = [source.columns[name].shape for name in names]
            facts[f"shapes of {option}"] = shapes
            facts[f"names of {option}"] = [source.columns[name].names for name in names]
        described.append(facts)
    for name, value in described[0].items():
        if described[1][name] != value:
            raise RecipeError(
                f"source.path: {first[0]} and {other[0]} do not go together, {name}: {value} there "
                f"and {described[1][name]} here; name what both have, or make a dataset of each"
            )


def _prefixes(paths: Sequence[str]) -> list[str]:
    """A name for each folder: its own, with its number where two are called alike."""
    names = [plain_name(Path(path).name or "folder") for path in paths]
    return [
        name if names.count(name) == 1 else f"{name}_{number}" for number, name in enumerate(names)
    ]
