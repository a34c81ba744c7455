"""From matplotlib's SVG to one that is a part of the page: its colours, its text, and values on hover."""

import re
from collections.abc import Mapping
from xml.etree import ElementTree as ET

from drgrade.reporting.figures.canvas import COLOURS, HEAT, INK, LINE, PAPER, SOFT

_SVG, _LINK = "http://www.w3.org/2000/svg", "{http://www.w3.org/1999/xlink}href"

VARIABLES = {
    INK: "text",
    SOFT: "soft",
    LINE: "line",
    PAPER: "card",
    HEAT: "heat",
    **{colour: f"series-{number}" for number, colour in enumerate(COLOURS)},
}
"""Colours of the figures, and the variables of the page's stylesheet that take their place."""

_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FAMILY = re.compile(r"\s*font-family:[^;]*;?")
_SHORTHAND = re.compile(r"font:\s*((?:bold|\d+)\s+)?([\d.]+px)\s+[^;]*")


def inline(svg: str, prefix: str, tips: Mapping[str, str], alt: str) -> str:
    """Make a figure a part of a page.

    Colours become variables of the stylesheet, so that it is legible on dark ground; text takes the page's
    font; ids are unique in the page; parts that have values get them as a title, and can have the focus.

    Args:
        svg: From :func:`drgrade.reporting.figures.canvas.svg`.
        prefix: For the ids; unique in the page.
        tips: Text by id of the part.
        alt: What the figure shows.

    Returns:
        An ``<svg>`` element without width and height: it is as wide as its place.

    Raises:
        ValueError: If a part is not in the figure.
    """
    root = ET.fromstring(svg)
    _drop(root, {f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"})
    found = {element.get("id"): element for element in root.iter()}
    for gid, text in tips.items():
        if gid not in found:
            raise ValueError(f"there is no {gid} in the figure {prefix}")
        _give_tip(found[gid], text, first=gid == next(iter(tips)))
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
    # One stop of the tabulator for a figure; the arrow keys go on from there.
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
    """Hundredths of a point are finer than any screen, and the page is smaller by a third."""
    rounded = re.sub(r"-?\d+\.\d{3,}", lambda match: f"{float(match.group()):.2f}", numbers)
    return " ".join(rounded.split())


def _rename(root: ET.Element, prefix: str) -> None:
    """Make ids unique; those that nothing refers to are left out."""
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
