"""Named arrays and options as bytes: the safetensors format, in which nothing can run code."""

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tokenwm.errors import TokenwmError

MEDIA_TYPE = "application/x-safetensors"


def pack(arrays: Mapping[str, NDArray[Any]], options: Mapping[str, Any]) -> bytes:
    """Write arrays and JSON-ready options."""
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return save(whole, metadata={"options": json.dumps(options)})


def unpack(body: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what :func:`pack` wrote.

    Raises:
        TokenwmError: The bytes are something else.
    """
    try:
        arrays = load(body)
        (length,) = struct.unpack_from("<Q", body)
        header = json.loads(body[8 : 8 + length])
        options = json.loads(header.get("__metadata__", {}).get("options", "{}"))
    except (
        SafetensorError,
        struct.error,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        RecursionError,
    ) as error:
        raise TokenwmError(f"the body is not in the safetensors format: {error}") from error
    if not isinstance(options, dict):
        raise TokenwmError(
            f"the metadata entry `options` is {type(options).__name__}, not an object"
        )
    return arrays, options
