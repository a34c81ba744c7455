"""Entry points. ``drgrade COMMAND [overrides]``; ``train.py`` is ``drgrade train``."""

import runpy
import sys

COMMANDS = {
    "train": "one run or, with -m, a sweep (the same as python train.py)",
    "prepare": "photographs -> store: drgrade prepare data=NAME data.root=DIR",
    "audit": "what is wrong with photographs and labels: drgrade audit data=NAME data.root=DIR",
    "evaluate": "a run tested on any data set: drgrade evaluate checkpoint=RUN [data=NAME data.root=DIR]",
    "predict": "photographs graded: drgrade predict checkpoint=RUN input=FILE_OR_FOLDER",
    "app": "a local page to try a run: drgrade app checkpoint=RUN",
    "export": "a run as one file: drgrade export checkpoint=RUN format=onnx|torch",
    "publish": "a run and its model card, handed on: drgrade publish checkpoint=RUN to=FOLDER",
    "report": "tables, figures and a page: drgrade report RUN_OR_SWEEP ...",
    "reproduce": "photographs -> report, its time estimated first: drgrade reproduce data=NAME data.root=DIR",
    "dashboard": "a workspace and a report in Weights & Biases: drgrade dashboard SWEEP",
}

USAGE = "usage: drgrade COMMAND [overrides]\n\n" + "\n".join(
    f"  {name:10}{text}" for name, text in COMMANDS.items()
)


def main() -> None:
    """Run the command's module as the program.

    Lightning starts the further processes of a DDP run by the name of the main module, so the module that
    runs has to be the command's own.
    """
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command in ("", "-h", "--help", "help"):
        print(USAGE)
        sys.exit(0 if command else 2)
    if command not in COMMANDS:
        print(f"drgrade: there is no command {command!r}\n\n{USAGE}", file=sys.stderr)
        sys.exit(2)
    del sys.argv[1]
    runpy.run_module(f"drgrade.cli.{command}", run_name="__main__", alter_sys=True)
