"""One way to make a page: a template that lies beside its user, on the base that all pages share.

A page is one file that can be forwarded: style and pictures are inside, it needs no network and
runs no script. Every value is escaped, since names and sentences may come from strangers' data.
"""

import base64
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

PACKAGE = Path(__file__).parents[1]


def render(template: str, **values: Any) -> str:
    """A finished page.

    Args:
        template: File in the package, such as ``evaluation/report/report.html``. It extends
            ``pages/base.html`` and may import the macros of ``pages/parts.html``.
        values: Values by the names that the template uses; a name without a value is an error.
    """
    return _environment().get_template(template).render(values)


def data_uri(content: bytes, kind: str = "png") -> str:
    """A picture as an address that holds it: the value of ``src`` of an image.

    Args:
        content: The picture's file.
        kind: Its format: ``png``, ``gif`` or ``jpeg``.
    """
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


@cache
def _environment() -> "Environment":
    # Not at the top: commands that write no page start without it.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = data_uri
    return environment
