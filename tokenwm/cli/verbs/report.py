"""``tokenwm report PATH``: the page of a report again, from the figures beside it."""

from pathlib import Path

from tokenwm.cli.console import console_of, give, say
from tokenwm.cli.options import parse
from tokenwm.data.quality_report import PAGE_NAME, rewrite
from tokenwm.data.shards.manifest import MANIFEST_NAME
from tokenwm.data.storage.folder import join, open_folder
from tokenwm.errors import TokenwmError
from tokenwm.evaluation.report.renew import renew_report


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code.

    Raises:
        TokenwmError: There is no report, or no figures to make it of.
    """
    arguments = parse("report", argv)
    path = arguments.path
    if open_folder(path).size(MANIFEST_NAME) is not None:
        rewrite(path)
        page = join(path, PAGE_NAME)
    else:
        places = [Path(path), Path(path) / "report", Path(path) / "report_folds"]
        folder = next((place for place in places if (place / "metrics.json").is_file()), None)
        if folder is None:
            raise TokenwmError(
                f"{path} holds neither a report (metrics.json) nor frame shards; tokenwm evaluate "
                "makes the one, tokenwm prepare the other"
            )
        page = str(renew_report(folder))
    say(console_of(arguments), f"report: {page}")
    give(arguments, {"page": page})
    return 0
