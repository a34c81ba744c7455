"""``drgrade app``: try a trained run on a local web page."""

import importlib.util
import os
import webbrowser

from omegaconf import DictConfig

from drgrade.cli.command import run
from drgrade.errors import ConfigError
from drgrade.settings import AppSettings


def work(cfg: DictConfig) -> None:
    """Serve the page until Ctrl-C.

    Args:
        cfg: The composed config (``conf/app.yaml``).

    Raises:
        DrgradeError: If a run cannot be loaded, the port is taken, or Gradio is not installed.
    """
    for name in ("gradio", "fastapi", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            raise ConfigError("drgrade app needs gradio, which is not installed: pip install 'drgrade[app]'")

    from drgrade.app import server

    server.silence()
    server.stay()
    _serve(AppSettings.read(cfg))


def _serve(settings: AppSettings) -> None:
    from drgrade.app.analysis import Examiner
    from drgrade.app.page import make_page
    from drgrade.app.server import ending_cleanly, listen, make_app, serve
    from drgrade.app.uploads import Uploads
    from drgrade.prediction.grader import Grader
    from drgrade.progress import say

    grader = Grader.load(settings.checkpoint, settings.device, settings.tta)
    examiner = Examiner(grader, settings.sensitivity, settings.abstain, settings.maps)
    with ending_cleanly(), listen(settings.port) as listening, Uploads() as uploads:
        # Set before Gradio is imported, which happens when the page is made.
        os.environ["GRADIO_TEMP_DIR"] = str(uploads.folder)
        app = make_app(make_page(examiner, uploads, settings.tta), uploads)
        address = "http://{}:{}/".format(*listening.getsockname())
        say(f"uploads are kept in {uploads.folder} until they are analysed; Ctrl-C ends the app")
        print(address, flush=True)
        if settings.open:
            webbrowser.open(address)
        serve(app, listening, uploads)


def main() -> None:
    """Run from the command line."""
    run(work, AppSettings)


if __name__ == "__main__":
    main()
