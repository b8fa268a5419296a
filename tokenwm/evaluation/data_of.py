"""The frames that a model was trained on, by its provenance."""

from pathlib import Path

from tokenwm.checkpoint import read_provenance
from tokenwm.data.shards.manifest import MANIFEST_NAME
from tokenwm.data.storage.folder import is_url
from tokenwm.errors import TokenwmError


def data_of(folder: Path) -> str:
    """Return the folder of the frames.

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
    if not (Path(frames) / MANIFEST_NAME).is_file():
        raise TokenwmError(f"{folder} was trained on {frames}, which is not there; give --data")
    return frames
