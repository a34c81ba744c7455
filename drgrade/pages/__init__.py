"""What the pages of audit and report share: their look, and the way templates are filled in."""

from functools import cache
from importlib.resources import files

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
        package: As in ``drgrade.audit``.
        name: Of the file, relative to the package's folder.
    """
    return (files(package) / name).read_text(encoding="utf-8")


def stylesheet(package: str) -> Markup:
    """Put the look of all pages before a page's own.

    Args:
        package: Has ``templates/page.css``.
    """
    return Markup(resource("drgrade.pages", "base.css") + resource(package, "templates/page.css"))
