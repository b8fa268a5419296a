"""Messages between a page and the server: short JSON one way, JSON and pictures the other."""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from tokenwm.errors import TokenwmError

MOST_CHARACTERS = 2**16
KINDS: Mapping[str, Mapping[str, type]] = {
    "begin": {"episode": str, "step": int},
    "look": {"episode": str, "step": int},
    "act": {"actions": list, "number": int},
    "play": {"on": bool},
    "step": {},
    "back": {"to": int},
    "luck": {"seed": int},
    "compare": {"on": bool, "keep": int},
    "follow": {"on": bool},
    "save": {},
    "shown": {"number": int},
}
"""Kind of message → its fields and their types."""


def read_message(text: str) -> dict[str, Any]:
    """A message from a page, with exactly the fields of its kind.

    Raises:
        TokenwmError: It is none.
    """
    if len(text) > MOST_CHARACTERS:
        raise TokenwmError(f"a message of {len(text)} characters; at most {MOST_CHARACTERS}")
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TokenwmError(f"a message that is no JSON: {error}") from error
    kind = message.get("type") if isinstance(message, dict) else None
    fields = KINDS.get(kind) if isinstance(kind, str) else None
    if fields is None:
        raise TokenwmError(f"a message of unknown type; known: {', '.join(KINDS)}")
    if message.keys() != {"type", *fields}:
        raise TokenwmError(f"{kind} has the fields {sorted(message)}; {sorted(fields)}")
    for name, wanted in fields.items():
        if type(message[name]) is not wanted:
            raise TokenwmError(f"{kind}: {name} is no {wanted.__name__}")
        if wanted is int and not -(2**62) < message[name] < 2**62:
            raise TokenwmError(f"{kind}: {name}={message[name]} is too large")
    checked: dict[str, Any] = message
    return checked


def read_actions(given: Sequence[Any]) -> list[list[float]]:
    """The robot's actions in one or two futures.

    Raises:
        TokenwmError: They are something else.
    """
    is_list = 1 <= len(given) <= 2 and all(isinstance(action, list) for action in given)
    if not is_list or not all(
        type(value) in (int, float) and abs(value) < 1e9 for action in given for value in action
    ):
        raise TokenwmError("actions are no lists of finite numbers, one or two")
    return [[float(value) for value in action] for action in given]


def read_upload(content: bytes) -> tuple[list[float], bytes]:
    """An uploaded picture: the robot's state in it, and the file.

    Raises:
        TokenwmError: It is none.
    """
    header, _, picture = content.partition(b"\n")
    try:
        state = json.loads(header[:MOST_CHARACTERS])
    except (ValueError, RecursionError) as error:
        raise TokenwmError("an upload begins with a line of JSON, the robot's state") from error
    if not isinstance(state, list):
        raise TokenwmError("an upload begins with a list of numbers, the robot's state")
    return read_actions([state])[0], picture


def pack(header: Mapping[str, Any], pictures: Sequence[bytes]) -> bytes:
    """A message to a page: length of the header, the header, pictures one behind another."""
    sizes = [len(picture) for picture in pictures]
    text = json.dumps({**header, "pictures": sizes}, allow_nan=False).encode()
    return b"".join([struct.pack("<I", len(text)), text, *pictures])


def unpack(content: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """The inverse of :func:`pack`, for players that are programs."""
    (length,) = struct.unpack_from("<I", content)
    header = json.loads(content[4 : 4 + length])
    pictures, at = [], 4 + length
    for size in header["pictures"]:
        pictures.append(content[at : at + size])
        at += size
    return header, pictures
