"""Templates and stylesheets of HTML pages."""

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup


@cache
def environment() -> Environment:
    """Return the Jinja environment; it escapes everything because file names and labels are untrusted."""
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def resource(package: str, name: str) -> str:
    """Read a file of a package, such as ``templates/page.css`` of ``drgrade.auditing``."""
    return (files(package) / name).read_text(encoding="utf-8")


def stylesheet(*packages: str) -> Markup:
    """Concatenate the common stylesheet and ``templates/page.css`` of packages."""
    styles = [resource(package, "templates/page.css") for package in packages]
    return Markup(resource("drgrade.html", "base.css") + "".join(styles))


def fill_page(package: str, **content: Any) -> str:
    """Render the page of a package.

    Args:
        package: Package with ``templates/page.html.j2`` and ``templates/page.css``.
        **content: Variables of the template; ``css`` replaces the stylesheet.
    """
    template = environment().from_string(resource(package, "templates/page.html.j2"))
    return template.render(**{"css": stylesheet(package), **content})
