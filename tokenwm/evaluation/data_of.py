"""The frames that a model was trained on, by its provenance."""

from pathlib import Path

from tokenwm.checkpoint import read_provenance
from tokenwm.data.shards.manifest import MANIFEST_NAME
from tokenwm.data.storage.folder import is_url, open_folder, sha256_of
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
    here, digest = Path(frames), of_tokenizer.get("data_manifest_sha256")
    above = (parent / frames for parent in folder.resolve().parents)
    found = next((place for place in (here, *above) if digest and _digest(place) == digest), here)
    if (found / MANIFEST_NAME).is_file():
        return str(found)
    looked = "there" if Path(frames).is_absolute() else f"in {Path.cwd()}, nor above {folder}"
    raise TokenwmError(
        f"{folder} was trained on {frames}, which is not {looked}; give --data with the folder of "
        "these frames"
    )


def _digest(place: Path) -> str | None:
    is_there = (place / MANIFEST_NAME).is_file()
    return sha256_of(open_folder(place), MANIFEST_NAME) if is_there else None
