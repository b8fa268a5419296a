"""Files of a fit: ``fit.json``, the plots, and one page."""

import json
from dataclasses import dataclass
from pathlib import Path

from tokenwm.data.storage.atomic import open_atomically
from tokenwm.errors import SweepError
from tokenwm.scaling.law.fit import SweepFit
from tokenwm.scaling.report.page import page
from tokenwm.scaling.report.plain import as_plain
from tokenwm.scaling.report.plots import make_plots


@dataclass(frozen=True, kw_only=True)
class FitFiles:
    """The files of a fit.

    Attributes:
        index: The page.
        values: ``fit.json``.
        plots: The pictures on the page.
    """

    index: Path
    values: Path
    plots: tuple[Path, ...]


def write_fit(folder: Path | str, name: str, fit: SweepFit) -> FitFiles:
    """Write everything, each file whole or not at all.

    Args:
        folder: Made if it is not there; files of an earlier fit are replaced.
        name: Name of the sweep, for the title.
        fit: The fitted sweep.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SweepError(f"folder {folder} cannot be made: {error}; choose another") from error
    plots = make_plots(fit)
    paths = []
    for plot in plots:
        paths.append(folder / f"{plot.name}.png")
        _write(paths[-1], plot.png)
    text = json.dumps(as_plain(fit), indent=1, allow_nan=False)
    files = FitFiles(index=folder / "index.html", values=folder / "fit.json", plots=tuple(paths))
    _write(files.values, text.encode())
    _write(files.index, page(fit, name, plots).encode())
    return files


def _write(path: Path, content: bytes) -> None:
    with open_atomically(path) as file:
        file.write(content)
