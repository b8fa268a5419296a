"""The description of an exported LeRobot folder: features, provenance, a card."""

import json
import re
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

import tokenwm
from tokenwm.data.shards.manifest import Manifest
from tokenwm.synthesis.lerobot.files import pixel_format

HUB_LICENCES = frozenset(
    ("agpl-3.0", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-2.0", "cc-by-3.0")
    + ("cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0")
    + ("cc-by-sa-4.0", "cc0-1.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "mit", "mpl-2.0", "odbl")
    + ("odc-by", "pddl", "unknown", "unlicense")
)
"""Names of licences that the hub knows, of those that data has."""
OURS = {"observation.state": "state", "action": "action"}
"""LeRobot's name of a feature → ours, where both have names for its dimensions."""


def features(
    manifest: Manifest, columns: Mapping[str, NDArray[Any]], fps: float
) -> dict[str, dict[str, Any]]:
    """Type, shape and names of every column and every camera, for ``info.json``."""
    described: dict[str, dict[str, Any]] = {}
    for name, values in columns.items():
        names = manifest.features[OURS[name]].names if name in OURS else ()
        described[name] = {
            "dtype": values.dtype.name,
            "shape": list(values.shape[1:]) or [1],
            "names": list(names) or None,
        }
    for camera in manifest.cameras:
        height, width, channels = manifest.features[f"frames.{camera}"].shape
        described[f"observation.images.{camera}"] = {
            "dtype": "video",
            "shape": [height, width, channels],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": height,
                "video.width": width,
                "video.codec": "h264",
                "video.pix_fmt": pixel_format(height, width),
                "video.is_depth_map": False,
                "video.fps": fps,
                "video.channels": channels,
                "has_audio": False,
            },
        }
    return described


def provenance(manifest: Manifest) -> dict[str, Any]:
    """The origin of the episodes, for ``info.json``."""
    return {
        "tool": f"tokenwm {tokenwm.__version__}",
        "dataset": manifest.name,
        "provenance": manifest.provenance,
        "actions_per_step": manifest.actions_per_step,
        "units": {name: f.units for name, f in manifest.features.items() if f.units},
        "last_action": "repeats the one before it",
    }


def sidecar(manifest: Manifest, metadata: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The content of ``meta/tokenwm.json``: where each imagined episode came from.

    LeRobot leaves this file alone.

    Args:
        manifest: The dataset.
        metadata: Of its episodes, in the order of their indices; texts by step become lists.
    """
    return {
        "tool": f"tokenwm {tokenwm.__version__}",
        "dataset": manifest.name,
        "provenance": manifest.provenance,
        "episodes": [
            {
                "episode_index": index,
                "key": key,
                **{
                    name: json.loads(value) if name.endswith("_by_step") and value else value
                    for name, value in values.items()
                },
            }
            for index, (key, values) in enumerate(metadata.items())
        ],
    }


def hub_licence(licence: str) -> str:
    """The Hugging Face hub's name of a licence: one of its own, else ``other``."""
    name = re.sub(r"[\s_]+", "-", licence.strip().lower()).removesuffix("-license")
    return name if name in HUB_LICENCES else "other"


def card(manifest: Manifest) -> str:
    """``README.md``, as the Hugging Face hub shows it; a licence is stated there."""
    licence = str(manifest.provenance.get("licence", "unknown"))
    return (
        f"---\nlicense: {hub_licence(licence)}\nlicense_name: {json.dumps(licence)}\n"
        "tags: [LeRobot]\n---\n\n"
        f"# {manifest.name}\n\nWritten by tokenwm {tokenwm.__version__} from frame shards at "
        f"{manifest.control_rate:g} Hz. Licence of the data: {licence}. Source: "
        f"{manifest.provenance.get('source', 'unknown')}; the rest of its provenance is in "
        "`meta/info.json` under `tokenwm`.\n"
    )
