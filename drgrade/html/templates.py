"""What the pages of audit and report share: their look, and the way templates are filled in."""

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup


@cache
def environment() -> Environment:
    """Make the environment of all pages.

    Names of files and cells of label files come from outside: everything is escaped.
    """
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def resource(package: str, name: str) -> str:
    """Read a file that comes with the code.

    Args:
        package: As in ``drgrade.auditing``.
        name: Of the file, relative to the package's folder.
    """
    return (files(package) / name).read_text(encoding="utf-8")


def stylesheet(*packages: str) -> Markup:
    """Put the look of all pages before a page's own.

    Args:
        *packages: Each has ``templates/page.css``; a page that shows what another one does begins with its.
    """
    own = [resource(package, "templates/page.css") for package in packages]
    return Markup(resource("drgrade.html", "base.css") + "".join(own))


def fill_page(package: str, **content: Any) -> str:
    """Fill in a package's page.

    Args:
        package: Has ``templates/page.html.j2`` and ``templates/page.css``.
        **content: What the template names; ``css`` takes the place of the package's own.

    Returns:
        HTML.
    """
    template = environment().from_string(resource(package, "templates/page.html.j2"))
    return template.render(**{"css": stylesheet(package), **content})
