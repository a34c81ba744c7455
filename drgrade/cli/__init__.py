"""Entry points: ``drgrade COMMAND [SETTING=VALUE ...]``; ``train.py`` is ``drgrade train``."""

import runpy
import sys

COMMANDS = (
    *("train", "prepare", "audit", "evaluate", "predict", "app", "export", "publish", "report", "reproduce"),
    "dashboard",
)


def usage() -> str:
    """Return the list of the commands, each with the first sentence of its YAML file."""
    from drgrade.config import CONF, header

    lines = [f"  {name:11}{header(CONF / f'{name}.yaml').splitlines()[0]}" for name in COMMANDS]
    return "\n".join(["usage: drgrade COMMAND [SETTING=VALUE ...]", "", *lines, "", "drgrade COMMAND --help"])


def main() -> None:
    """Run the command's module as the program.

    Lightning starts the further processes of a DDP run by the name of the main module, so the module that
    runs has to be the command's own.
    """
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command in ("", "-h", "--help", "help"):
        print(usage())
        sys.exit(0 if command else 2)
    if command not in COMMANDS:
        print(f"drgrade: there is no command {command!r}\n\n{usage()}", file=sys.stderr)
        sys.exit(2)
    del sys.argv[1]
    runpy.run_module(f"drgrade.cli.{command}", run_name="__main__", alter_sys=True)
