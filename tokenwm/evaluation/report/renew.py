"""The page of an old report in today's form, from its ``metrics.json``, pictures and films."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenwm.errors import TokenwmError
from tokenwm.evaluation.report.page import ExamplePictures
from tokenwm.evaluation.report.report import caption_of, stem_of, write_page
from tokenwm.evaluation.report.training_curves import stored_plots
from tokenwm.evaluation.results import Evaluation


def renew_report(out: Path | str) -> Path:
    """Write the page and the plots of a report again.

    Args:
        out: Folder of the report.

    Returns:
        The page.

    Raises:
        TokenwmError: There is no report, it is of another version, or a file cannot be written.
    """
    out = Path(out)
    try:
        metrics = json.loads((out / "metrics.json").read_bytes())
        evaluation = Evaluation.from_dict(metrics)
        examples = _stored_examples(out, metrics.get("examples"))
        return write_page(out, evaluation, examples, stored_plots(out / "plots")).index
    except (OSError, ValueError, KeyError, TypeError, RecursionError, TokenwmError) as error:
        raise TokenwmError(
            f"report {out} cannot be renewed: {error}; make it again with 'tokenwm evaluate'"
        ) from error


def _stored_examples(out: Path, known: Sequence[Mapping[str, Any]] | None) -> list[ExamplePictures]:
    """The examples that ``metrics.json`` names, or, of older reports, all strips there are."""
    # Names are looked up among the files of the folder, so that they can lead nowhere else.
    strips, films = (
        {path.stem: path for path in sorted((out / name).iterdir()) if not path.is_symlink()}
        for name in ("strips", "films")
    )
    captions = {
        stem_of(item["key"], item["first_step"]): caption_of(**item) for item in known or []
    }
    if known is None:
        parts = {stem: stem.rpartition("_") for stem in strips}
        captions = {
            stem: f"episode {key} from step {int(n)}" for stem, (key, _, n) in parts.items()
        }
    return [
        ExamplePictures(caption=caption, strip=strips[stem], film=films[stem])
        for stem, caption in captions.items()
        if stem in strips and stem in films
    ]
