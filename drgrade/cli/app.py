"""``drgrade app``: a page on this computer to try a trained run."""

import importlib.util
import os
from dataclasses import dataclass, field
from pathlib import Path

from drgrade.cli.arguments import run
from drgrade.errors import ConfigError

USAGE = """\
usage: drgrade app checkpoint=RUN[,RUN ...] [name=value ...]

A page to try a trained run on photographs, served on 127.0.0.1 to this computer only. Nothing is stored,
nothing leaves the machine. Ctrl-C ends it. For research only; it is no medical device.
"""

_NEEDED = ("gradio", "fastapi", "uvicorn")


@dataclass(frozen=True)
class Settings:
    """What can be set on the command line."""

    checkpoint: tuple[Path, ...] = field(
        default=(), metadata={"help": "a run's folder; several, with commas, are an ensemble"}
    )
    port: int | None = field(default=None, metadata={"help": "0: any that is free; null: 7860 or a free one"})
    sensitivity: float | None = field(
        default=None, metadata={"help": "for referable DR, as on validation; null: 0.9 if the run can say"}
    )
    tta: str = field(default="none", metadata={"help": "test-time augmentation: none, flips or dihedral"})
    device: str = field(default="auto", metadata={"help": "auto: a GPU if there is one; or cpu, cuda:1, ..."})
    abstain: bool = field(default=True, metadata={"help": "do not grade what cannot be graded"})
    maps: tuple[str, ...] = field(
        default=(), metadata={"help": "what the grade hangs on: names of maps; empty: one of each kind"}
    )
    open: bool = field(default=False, metadata={"help": "open the page in the browser"})


def work(paths: list[Path], settings: Settings) -> None:
    """Serve the page until Ctrl-C.

    Args:
        paths: None are taken.
        settings: Of the command line.

    Raises:
        DrgradeError: If a run cannot be loaded, a setting makes no sense, the port is taken, or Gradio is
            missing.
    """
    if paths:
        raise ConfigError(f"{paths[0]} is no setting: drgrade app checkpoint={paths[0]}")
    if not settings.checkpoint:
        raise ConfigError("no run is given: drgrade app checkpoint=RUN, or checkpoint=RUN,RUN")
    for name in _NEEDED:
        if importlib.util.find_spec(name) is None:
            raise ConfigError("drgrade app needs gradio, which is not installed: pip install 'drgrade[app]'")

    from drgrade.app import server as isolation

    isolation.silence()
    isolation.stay()
    _serve(settings)


def _serve(settings: Settings) -> None:
    from drgrade.app.analysis import Examiner
    from drgrade.app.page import make_page
    from drgrade.app.server import ending_cleanly, listen, make_app, serve
    from drgrade.app.uploads import Uploads
    from drgrade.prediction.grader import Grader
    from drgrade.progress import say

    grader = Grader.load(settings.checkpoint, settings.device, settings.tta)
    examiner = Examiner(grader, settings.sensitivity, settings.abstain, settings.maps)
    with ending_cleanly(), listen(settings.port) as listening, Uploads() as uploads:
        # Before Gradio is imported, which is when the page is made.
        os.environ["GRADIO_TEMP_DIR"] = str(uploads.folder)
        app = make_app(make_page(examiner, uploads, settings.tta), uploads)
        address = "http://{}:{}/".format(*listening.getsockname())
        say(f"uploads are in {uploads.folder} until they have been looked at; Ctrl-C ends it")
        print(address, flush=True)
        if settings.open:
            import webbrowser

            webbrowser.open(address)
        serve(app, listening, uploads)


def main() -> None:
    """Run from the command line."""
    run(work, Settings(), USAGE)


if __name__ == "__main__":
    main()
