"""The frames and the tokens that a model was trained on, by its provenance."""

from pathlib import Path

from tokenwm.checkpoint import read_provenance
from tokenwm.data.shards.manifest import MANIFEST_NAME, manifest_sha256
from tokenwm.data.storage.folder import is_url
from tokenwm.errors import TokenwmError


def data_of(folder: Path) -> str:
    """Return the folder of the frames.

    A relative path is that of the folder in which training ran, so it is looked for in the working
    folder and in those above the checkpoint, there only if its manifest is the one of training.
    A URL is named and not followed, since a stranger may have written it into the checkpoint.

    Args:
        folder: Checkpoint folder of a world model.

    Raises:
        TokenwmError: They are not known, behind a URL, or no longer there.
    """
    provenance, of_tokenizer = read_provenance(folder), read_provenance(folder / "tokenizer")
    frames = of_tokenizer.get("data")
    same = provenance.get("data_provenance") == of_tokenizer.get("data_provenance")
    if not same or not isinstance(frames, str):
        raise TokenwmError(f"{folder} does not say which frames it was trained on; give --data")
    if is_url(frames):
        raise TokenwmError(f"{folder} was trained on {frames}; give --data to read from there")
    digest = of_tokenizer.get("data_manifest_sha256")
    found = _place_of(folder, frames, digest) or Path(frames)
    if (found / MANIFEST_NAME).is_file():
        return str(found)
    looked = "there" if Path(frames).is_absolute() else f"in {Path.cwd()}, nor above {folder}"
    raise TokenwmError(
        f"{folder} was trained on {frames}, which is not {looked}; give --data with the folder of "
        "these frames"
    )


def tokens_of(folder: Path) -> list[str]:
    """Folders of the token shards that a world model was trained on, of those that are there still.

    Looked for as :func:`data_of` does; what has changed since does not count.

    Args:
        folder: Checkpoint folder of a world model.
    """
    provenance = read_provenance(folder)
    mixed = provenance.get("data_mixture")
    found = {}
    for item in (provenance, *(mixed if isinstance(mixed, list) else ())):
        data = item.get("data") if isinstance(item, dict) else None
        if isinstance(data, str) and not is_url(data) and data not in found:
            found[data] = _place_of(folder, data, item.get("data_manifest_sha256"))
    return [str(place) for place in found.values() if place is not None]


def _place_of(folder: Path, data: str, digest: str | None) -> Path | None:
    """The folder that a path meant in training, if its manifest is the one of training."""
    places = (Path(data), *(parent / data for parent in folder.resolve().parents))
    return next((place for place in places if digest and _digest(place) == digest), None)


def _digest(place: Path) -> str | None:
    is_there = (place / MANIFEST_NAME).is_file()
    return manifest_sha256(place) if is_there else None
