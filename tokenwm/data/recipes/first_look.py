"""A first look at a few episodes before a dataset is planned: what they have, which can be used.

What is seen depends on the source alone, so the plan is the same whatever makes the shards.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from tokenwm.data.episode import Episode
from tokenwm.data.readers.base import EpisodeRef, Source, load_one
from tokenwm.errors import EpisodeError, SourceError

MOST_LAYOUTS = 8
"""Usable episodes that may all differ until the first one is taken to be as they should be."""

Layout = dict[str, tuple[tuple[int, ...], str]]
"""Field → shape of one step and dtype."""


class FirstLook:
    """Loads episodes one by one, as few as will do, and remembers what it saw of each.

    Args:
        source: Where they come from.
        strict: Whether a bad episode is an error.
        agreeing: Usable episodes that must have the same fields for these to be the usual ones: 2
            keep one odd episode from deciding for all.
    """

    def __init__(self, source: Source, *, strict: bool, agreeing: int = 2) -> None:
        self._source = source
        self._strict = strict
        self._agreeing = agreeing
        self._seen: dict[str, Layout | EpisodeError] = {}
        self._layout: Layout = {}

    def find_layout(self, refs: Iterable[EpisodeRef]) -> Layout:
        """Find the layout that all episodes must have, by looking at some in the given order.

        Raises:
            EpisodeError: One of those looked at breaks a rule, and the recipe is strict.
            SourceError: None can be used.
        """
        reasons = []

        def usable() -> Iterator[Layout]:
            for ref in refs:
                found = self._look_at(ref)
                if isinstance(found, EpisodeError):
                    reasons.append(str(found))
                else:
                    yield found

        layout = usual_layout(usable(), self._agreeing)
        if layout is None:
            raise SourceError(
                f"no episode is left, {len(reasons)} of {len(reasons)} were left out: "
                f"{'; '.join(reasons[:3])}. Mend them, or choose good ones with source.episodes"
            )
        self._layout = layout
        return layout

    def is_usable(self, ref: EpisodeRef) -> bool:
        """True if an episode can be used and has the layout that was found.

        Raises:
            EpisodeError: It breaks a rule, and the recipe is strict.
        """
        return self._look_at(ref) == self._layout

    @property
    def problems(self) -> dict[str, str]:
        """Key of an episode that was looked at → why it cannot be used."""
        found = self._seen.items()
        return {key: str(item) for key, item in found if isinstance(item, EpisodeError)}

    def _look_at(self, ref: EpisodeRef) -> Layout | EpisodeError:
        if ref.key not in self._seen:
            result = load_one(self._source, ref)
            if self._strict and isinstance(result, EpisodeError):
                raise result
            self._seen[ref.key] = (
                layout_of(arrays_of(result)) if isinstance(result, Episode) else result
            )
        return self._seen[ref.key]


def usual_layout(layouts: Iterable[Layout], agreeing: int = 2) -> Layout | None:
    """The layout that the first episodes agree on.

    Args:
        layouts: Those of usable episodes, in order; read no further than needed.
        agreeing: Episodes that must have the same one: 2 keep one odd episode from deciding.

    Returns:
        None if there are none.
    """
    votes: Counter[str] = Counter()
    seen: list[Layout] = []
    for layout in layouts:
        seen.append(layout)
        votes[repr(layout)] += 1
        if votes[repr(layout)] == agreeing or len(seen) == MOST_LAYOUTS:
            break
    return max(seen, key=lambda layout: votes[repr(layout)], default=None)


def layout_mismatch(key: str, layout: Layout, usual: Layout) -> EpisodeError | None:
    """Reason to leave out an episode with other fields than the usual ones; None if it has these.

    Args:
        key: Episode, for messages.
        layout: Its layout.
        usual: The layout that all must have.
    """
    if layout == usual:
        return None
    differing = dict.fromkeys(sorted(name for name, _ in layout.items() ^ usual.items()))
    return EpisodeError(
        f"episode {key}: {', '.join(differing)} differs in shape or type from the usual "
        f"episode of the source: {layout}, not {usual}"
    )


def layout_of(arrays: Mapping[str, NDArray[Any]]) -> Layout:
    """Shape of a step and dtype of each field."""
    return {name: (array.shape[1:], array.dtype.name) for name, array in arrays.items()}


def arrays_of(episode: Episode) -> dict[str, NDArray[Any]]:
    """The fields of an episode that are stored, in their order."""
    arrays: dict[str, NDArray[Any]] = {
        f"frames.{camera}": frames for camera, frames in episode.frames.items()
    }
    if episode.state is not None:
        arrays["state"] = episode.state
    if episode.task_state is not None:
        arrays["task_state"] = episode.task_state
    arrays["action"] = episode.action
    if episode.reward is not None:
        arrays["reward"] = episode.reward
    arrays["terminated"] = episode.terminated
    arrays["truncated"] = episode.truncated
    return arrays
