"""Removal of local paths and secrets from texts that are published."""

import re
from pathlib import Path
from typing import Any

from tokenwm.errors import TokenwmError

LOCAL_PATH = re.compile(
    r"(?<![\w.:/~-])(?:file://)?(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\\"'<>|,;:()]+[/\\])*"
)
"""The folders of an absolute path, which are removed; its last name stays. No part of a URL."""
WHOLE_PATH = re.compile(r"(?:file://)?(?:~|[A-Za-z]:|\.\.)?[/\\]")
UP = re.compile(r"(?:\.\.[/\\])+(?:[^\s/\\\"'<>|,;:()]+[/\\])*")
SECRETS = re.compile(r"\bhf_[A-Za-z0-9]{10,}|(?<=://)[^/\s@]+@|(?<=\w)\?[^\s\"']*(?=$|[\s\"'])")
"""Tokens of the hub, users and passwords in URLs, and the queries of URLs, which may be signed."""


def without_private(value: Any) -> Any:
    """Return JSON-like data without local folders and secrets; the same where it has none."""
    if isinstance(value, str):
        if WHOLE_PATH.match(value):  # which may hold spaces
            value = re.split(r"[/\\]", value.rstrip("/\\"))[-1]
        text = SECRETS.sub("", value) if "://" in value or "hf_" in value else value
        return UP.sub("", LOCAL_PATH.sub("", text))
    if isinstance(value, dict):
        return {without_private(key): without_private(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_private(item) for item in value]
    return value


def check_public(name: str, content: bytes, token: str | None) -> None:
    """Refuse a file in which something private was left.

    Raises:
        TokenwmError: It names this user's home or working folder, or a token.
    """
    private = [f"{folder}/" for folder in (Path.home(), Path.cwd()) if len(str(folder)) > 1]
    for text in (*private, *([token] if token else [])):
        if text.encode() in content:
            what = "the token" if text == token else "a folder of this machine"
            raise TokenwmError(f"{name} names {what}; it is not pushed: take it out first")
