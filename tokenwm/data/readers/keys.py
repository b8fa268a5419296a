"""Keys of episodes, from the names that a source gives them."""

import logging
import re
from collections.abc import Sequence

from tokenwm.data.episode import NAME_PATTERN
from tokenwm.data.readers.base import PHASE
from tokenwm.data.readers.one_episode import writable

logger = logging.getLogger(__name__)

LONGEST_KEY = 60
"""Characters: a key becomes part of file names, with the field and marks of copies behind it."""
MARKED = re.compile(rf"({PHASE}|_shift)\d")
"""Marks that we put behind keys ourselves."""


def episode_keys(names: Sequence[str], where: str) -> list[str]:
    """A key for each episode: its name, or numbers for all if one name cannot be a key.

    Args:
        names: Names in the source, in the order of the episodes, each once.
        where: The source, for the message.
    """
    odd = [name for name in names if not _fits(name)]
    if not odd:
        return list(names)
    logger.warning(
        "%s: episodes are called episode_000000, episode_000001, …, since %s cannot be a key (at "
        "most %d letters, digits, '_' and '-', without %s or _shift and a number)",
        where,
        writable(repr(odd[0])),
        LONGEST_KEY,
        PHASE,
    )
    return [f"episode_{index:06d}" for index in range(len(names))]


def plain_name(name: str) -> str:
    """A name as it can be part of a key: other characters become underscores."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") or "folder"


def _fits(name: str) -> bool:
    plain = NAME_PATTERN.fullmatch(name) is not None and len(name) <= LONGEST_KEY
    return plain and MARKED.search(name) is None
