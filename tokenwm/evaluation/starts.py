"""Further starts for endings, the shuffling of actions between starts, a check of episode keys."""

import difflib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import ShardError
from tokenwm.imagination.starts import Start, Starts, spread


def ending_starts(
    reader: ShardReader, starts: Starts, *, num_context: int, horizon: int, num_starts: int
) -> dict[int, tuple[Start, ...]]:
    """Further starts near the end of each episode that ended its task, to measure endings by.

    Starts that are spread over an episode see its last action at the last horizon, if at all. These
    see it after 1 to ``horizon`` imagined steps, evenly spread, also in episodes that are too short
    to be measured otherwise. They are for endings only: pictures of them would favour the ends.

    Args:
        reader: Dataset.
        starts: The others; what is among them is left out here.
        num_context: ``C``, observed frames.
        horizon: ``H``, most imagined steps.
        num_starts: Most starts per episode.

    Returns:
        Number of imagined steps, of which the last ends the task → starts.
    """
    found: dict[int, list[Start]] = {}
    known = set(starts.rows)
    for key in (*starts.keys, *starts.skipped):
        ends = np.flatnonzero(reader.arrays(key, ["terminated"])["terminated"])
        # The action of step t is the last of h imagined ones if h - 1 others come before it.
        longest = min(horizon, int(ends[-1]) + 2 - num_context) if len(ends) else 0
        for count in spread(longest, num_starts) if longest > 0 else ():
            start = Start(key=key, first_step=int(ends[-1]) + 1 - num_context - count)
            if start not in known:
                found.setdefault(count + 1, []).append(start)
    return {count: tuple(rows) for count, rows in sorted(found.items())}


def check_episode(reader: ShardReader, key: str) -> None:
    """Check that an episode exists.

    Raises:
        ShardError: It does not; the message names the nearest ones.
    """
    keys = reader.keys()
    if key not in keys:
        close = difflib.get_close_matches(key, keys, n=3, cutoff=0.4) or keys[:3]
        raise ShardError(
            f"{reader.root} has no episode {key!r} among {len(keys)}; nearest: {', '.join(close)}"
        )


def shuffled_rows(keys: Sequence[str], seed: int) -> NDArray[np.int64] | None:
    """The exchange of actions between rows when they are shuffled: a derangement, fixed by a seed.

    Rows get the actions of another episode wherever no episode has more than half of the rows.
    Episodes and the starts within them are put in a random order first: the same phase of another
    recording of the same task would hold nearly the same actions.

    Args:
        keys: Episode of each row.
        seed: Seed of the order.

    Returns:
        ``(rows,)``: row ``i`` gets the actions of row ``result[i] != i``; None if there is one row
            only.
    """
    num_rows = len(keys)
    if num_rows < 2:
        return None
    generator = np.random.default_rng(seed)
    groups: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    members = [generator.permutation(rows) for rows in groups.values()]
    order = np.concatenate([members[index] for index in generator.permutation(len(members))])
    largest = max(map(len, members))
    shift = largest if 2 * largest <= num_rows else num_rows // 2
    result = np.empty(num_rows, dtype=np.int64)
    result[order] = np.roll(order, -shift)
    return result
