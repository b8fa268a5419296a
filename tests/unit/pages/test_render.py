import base64
import re
from pathlib import Path

import jinja2
import pytest

from tokenwm.pages.plot_style import Plot
from tokenwm.pages.render import _environment as environment
from tokenwm.pages.render import data_uri, render

BASE = {
    "title": "a page",
    "heading": "",
    "subtitle": "of a test",
    "level": "look",
    "verdict": "First sentence.",
    "sentences": ["Second."],
    "tiles": [("size", "3", "of 4")],
}


def test_the_base_is_a_page_of_its_own() -> None:
    text = render("pages/base.html", **BASE)
    assert text.startswith("<!doctype html>")
    assert "<h1>a page</h1>" in text and '<div class="verdict look"><p>First sentence.</p>' in text
    assert "<li>Second.</li>" in text and "<h3>size</h3><b>3</b><span>of 4</span>" in text
    assert "http" not in text and "<script" not in text and "<link" not in text


@pytest.mark.parametrize("name", ["title", "heading", "subtitle", "verdict", "sentences", "tiles"])
def test_strange_texts_are_escaped(name: str) -> None:
    strange = "<script>alert('x')</script>"
    value = {"sentences": [strange], "tiles": [(strange, strange, strange)]}.get(name, strange)
    text = render("pages/base.html", **{**BASE, name: value})
    assert "<script" not in text
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in text


def test_a_value_that_is_not_given_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="tiles"):
        render("pages/base.html", **{name: BASE[name] for name in BASE if name != "tiles"})


def parts(call: str, **values: object) -> str:
    source = '{% import "pages/parts.html" as parts %}{{ parts.' + call + " }}"
    return environment().from_string(source).render(values)


def test_the_first_cell_of_a_row_is_its_name() -> None:
    text = parts("table(head, rows)", head=["", "N"], rows=[["<b>", "1"], ["c", "2"]])
    assert "<thead><tr><th></th><th>N</th></tr></thead>" in text
    assert re.findall("<tr>(<th>.*)</tr>\n", text) == [
        "<th>&lt;b&gt;</th><td>1</td>",
        "<th>c</th><td>2</td>",
    ]


def test_remarks_need_something_to_say() -> None:
    assert parts('remarks("Warnings", [])').strip() == ""
    assert "<h3>Warnings</h3><ul><li>a</li></ul>" in parts('remarks("Warnings", ["a"])')


def test_a_plot_is_inside_the_page() -> None:
    plot = Plot(name="loss", title="Loss & <b>", caption="Lower is better.", png=b"\x89PNG...")
    text = parts('plots([plot], " against horizon")', plot=plot)
    assert 'alt="Loss &amp; &lt;b&gt; against horizon"' in text
    assert f'src="{data_uri(plot.png)}"' in text
    assert base64.b64decode(data_uri(b"GIF8", "gif").removeprefix("data:image/gif;base64,"))


def test_every_template_of_the_package_is_sound() -> None:
    package = Path(__file__).parents[3] / "tokenwm"
    names = [str(path.relative_to(package)) for path in package.rglob("*.html")]
    assert {"pages/base.html", "pages/parts.html"} <= set(names)
    for name in names:
        if "extends" in (package / name).read_text():
            environment().get_template(name)
