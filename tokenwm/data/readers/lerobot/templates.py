"""Path templates such as ``data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet``."""

import os
import re
import string
from collections.abc import Mapping
from pathlib import Path

from tokenwm.errors import SourceError

FORMAT_PATTERN = re.compile(r"(0?\d{1,2}d?)?")
"""``03d``; wider numbers, or another format, are not what a path needs."""


def check_template(template: str, values: Mapping[str, int], where: str) -> None:
    """Check a path template that may come from a stranger.

    Args:
        template: With the names of values in braces.
        values: Values that will be filled in, beside ``video_key``.
        where: The file it is in, for messages.

    Raises:
        SourceError: It asks for something unknown, or leads out of its folder.
    """
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise SourceError(f"{where}: path template {template!r} is not usable: {error}") from error
    known = {*values, "video_key"}
    for _, name, spec, conversion in fields:
        plain = name is None or (name in known and FORMAT_PATTERN.fullmatch(spec or ""))
        if not plain or conversion:
            raise SourceError(
                f"{where}: path template {template!r} is not usable: {{{name}:{spec}}}; known "
                f"are {', '.join(sorted(known))}"
            )
    path = os.path.normpath(fill(template, values, "a"))
    if os.path.isabs(path) or Path(path).parts[:1] == ("..",):
        raise SourceError(f"{where}: path template {template!r} leads out of the dataset")


def fill(template: str, values: Mapping[str, int], video_key: str) -> str:
    """Fill a checked path template in; a name with ``..`` is found out when links are followed."""
    return template.format(**values, video_key=video_key)
