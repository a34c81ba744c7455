"""Write the tables of docs/configuration.md from the YAML files and drgrade/settings.py.

A line ``<!-- settings: FILE ... -->`` of the page begins a table of the settings in files below conf/, and
``<!-- end -->`` ends it. Of several files, each has a column with its defaults. ``-FILE`` leaves its settings
out.

    python tools/configuration_tables.py            # write the page
    python tools/configuration_tables.py --check    # exit with status 1 if the page is not up to date
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from drgrade.cli.command import default_text, group_files
from drgrade.config import CONF, comments, declared, describe
from drgrade.settings import COMMANDS, TrainSettings

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"


def page(text: str) -> str:
    """Return the page with its tables written anew."""
    return re.sub(
        r"(<!-- settings: ([^>]+) -->\n).*?(?=<!-- end -->)",
        lambda found: f"{found[1]}\n{table(found[2].split())}\n",
        text,
        flags=re.DOTALL,
    )


def table(files: Sequence[str]) -> str:
    """Return the table of the settings that have a comment in one of the files.

    Args:
        files: Names below ``conf/``, without ending: ``train``, or ``scale/demo``; with ``-`` to leave out.
    """
    without = {
        name for file in files if file[0] == "-" for path in _paths(file[1:]) for name in comments(path)
    }
    files = [file for file in files if file[0] != "-"]
    model = COMMANDS.get(files[0], TrainSettings)
    group = f"{files[0].rpartition('/')[0]}." if "/" in files[0] else ""
    kinds = {name: describe(kind) for name, kind in declared(model).items()}
    columns = [_defaults(file) for file in files]
    meanings: dict[str, str] = {}
    for path in (path for file in files for path in _paths(file)):
        meanings |= {name: text for name, text in comments(path).items() if name not in meanings}
    heads = [file.rpartition("/")[2] for file in files] if len(files) > 1 else ["default"]
    rows = [["setting", *heads, "allowed", "meaning"], ["---"] * (3 + len(heads))]
    for name, meaning in meanings.items():
        if name in without:
            continue
        values = [f"`{column[name]}`" if column.get(name) else "" for column in columns]
        rows.append([f"`{group}{name}`", *values, kinds.get(group + name, ""), _linked(meaning)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _paths(file: str) -> list[Path]:
    group, _, choice = file.rpartition("/")
    return group_files(group, choice) if group else [CONF / f"{file}.yaml"]


def _defaults(file: str) -> dict[str, str]:
    """Return the settings of a file and of those that it is based on, with their defaults as text."""
    values: dict[str, str] = {}
    for path in _paths(file):
        config = OmegaConf.load(path)
        assert isinstance(config, DictConfig)
        values |= {name: default_text(config, name) or "required" for name in _leaves(config)}
    return values


def _leaves(config: DictConfig) -> list[str]:
    raw: Any = OmegaConf.to_container(config, resolve=False)
    found, waiting = [], [("", raw)]
    while waiting:
        prefix, node = waiting.pop()
        found.append(prefix.rstrip("."))
        if isinstance(node, dict):
            waiting += [(f"{prefix}{name}.", value) for name, value in node.items()]
    return [name for name in found if name]


def _linked(text: str) -> str:
    """Turn names of pages into links, and escape what Markdown would read as HTML."""
    return re.sub(r"docs/([\w/]+\.md)", r"[\1](\1)", text.replace("<", "&lt;"))


def main() -> None:
    """Write the page, or check it."""
    before = PAGE.read_text(encoding="utf-8")
    after = page(before)
    if "--check" in sys.argv and before != after:
        sys.exit(f"{PAGE} is not up to date: python {Path(__file__).name}")
    PAGE.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
