"""SVG of matplotlib figures, adapted for embedding in HTML pages."""

import re
from collections.abc import Mapping
from xml.etree import ElementTree as ET

from markupsafe import Markup

from drgrade.reporting.figures.canvas import COLOURS, HEAT, INK, LINE, PAPER, SOFT, ReportFigure, svg

_SVG, _LINK = "http://www.w3.org/2000/svg", "{http://www.w3.org/1999/xlink}href"

VARIABLES = {
    INK: "text",
    SOFT: "soft",
    LINE: "line",
    PAPER: "card",
    HEAT: "heat",
    **{colour: f"series-{number}" for number, colour in enumerate(COLOURS)},
}
"""CSS variables that replace the colours of the figures."""

_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FAMILY = re.compile(r"\s*font-family:[^;]*;?")
_SHORTHAND = re.compile(r"font:\s*((?:bold|\d+)\s+)?([\d.]+px)\s+[^;]*")


def embed(figure: ReportFigure, prefix: str = "") -> Markup:
    """Return a figure for a page; its text is escaped when it is written as XML."""
    return Markup(inline(svg(figure), prefix + figure.name, figure.tips, figure.alt))


def inline(svg: str, prefix: str, tips: Mapping[str, str], alt: str) -> str:
    """Adapt an SVG for embedding in a page.

    Colours become CSS variables, so that figures work on a dark background; text uses the font of the page;
    ids are unique in the page; parts with values get a title and can have the keyboard focus.

    Args:
        svg: From :func:`drgrade.reporting.figures.canvas.svg`.
        prefix: Prefix of ids; unique in the page.
        tips: Text by id of the part.
        alt: Description of the figure.

    Returns:
        An ``<svg>`` element without width and height, which fills its container.

    Raises:
        ValueError: If a part does not exist in the figure.
    """
    root = ET.fromstring(svg)
    _drop(root, {f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"})
    parts = {element.get("id"): element for element in root.iter()}
    for gid, text in tips.items():
        if gid not in parts:
            raise ValueError(f"figure {prefix} has no element {gid}")
        _give_tip(parts[gid], text, first=gid == next(iter(tips)))
    for element in root.iter():
        _restyle(element)
    _rename(root, prefix)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("class", "figure")
    root.set("role", "group" if tips else "img")
    root.set("aria-label", alt)
    ET.register_namespace("", _SVG)
    return re.sub(r">\s*\n\s*<", "><", ET.tostring(root, encoding="unicode"))


def _drop(root: ET.Element, tags: set[str]) -> None:
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in tags]:
            parent.remove(child)


def _give_tip(element: ET.Element, text: str, first: bool) -> None:
    title = ET.Element(f"{{{_SVG}}}title")
    title.text = text
    element.insert(0, title)
    element.set("class", "tip")
    element.set("role", "img")
    # The tab key reaches each figure once; arrow keys move within it.
    element.set("tabindex", "0" if first else "-1")


def _restyle(element: ET.Element) -> None:
    style = element.get("style")
    if style is not None:
        style = _FAMILY.sub("", _SHORTHAND.sub(_without_family, style))
        for colour, variable in VARIABLES.items():
            style = style.replace(colour, f"var(--{variable})")
        if element.tag.endswith("}text") and "fill:" not in style:
            style += "; fill: var(--text)"
        element.set("style", style.strip("; "))
    transform = element.get("transform")
    if transform is not None and transform.startswith("rotate(-0 "):
        del element.attrib["transform"]
    for name in {"d", "x", "y"} & element.attrib.keys():
        element.set(name, _rounded(element.attrib[name]))


def _without_family(match: re.Match[str]) -> str:
    weight = (match.group(1) or "").strip()
    size = f"font-size: {match.group(2)}"
    return f"font-weight: {weight}; {size}" if weight else size


def _rounded(numbers: str) -> str:
    """Round coordinates to hundredths of a point, which reduces the page by a third."""
    rounded = re.sub(r"-?\d+\.\d{3,}", lambda match: f"{float(match.group()):.2f}", numbers)
    return " ".join(rounded.split())


def _rename(root: ET.Element, prefix: str) -> None:
    """Make ids unique, and remove those that are not referenced."""
    used = set()
    for element in root.iter():
        for value in element.attrib.values():
            used.update(_REFERENCE.findall(value))
        used.add(element.get(_LINK, "").removeprefix("#"))
    for element in root.iter():
        name = element.attrib.pop("id", None)
        if name in used:
            element.set("id", f"{prefix}-{name}")
        link = element.attrib.pop(_LINK, None)
        if link is not None:
            element.set("href", f"#{prefix}-{link.removeprefix('#')}")
        for key, value in element.attrib.items():
            if "url(#" in value:
                element.set(key, _REFERENCE.sub(rf"url(#{prefix}-\1)", value))
