"""The Python that users are shown, for tests to execute."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def python_blocks(name: str) -> list[str]:
    """Every block of Python in a Markdown file of the repository."""
    text = (REPOSITORY / name).read_text()
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
