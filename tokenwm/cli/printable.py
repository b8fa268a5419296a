"""Text of a stranger (names, columns, reasons with file names in them), made fit for a terminal."""

from rich.markup import escape


def printable(text: str) -> str:
    """The text without control characters, which could move the cursor, and without rich markup."""
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text))
