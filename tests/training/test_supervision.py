"""A signal to any process of a run ends them all, and the outcome is recorded."""

import json
import os
import signal
import subprocess
import threading
import time

import pytest
from pytorch_lightning.callbacks import Callback

from drgrade.errors import ConfigError
from drgrade.processes import interruptible
from drgrade.training.distributed import lock_run_dir, supervised
from drgrade.training.run import train


class Signalled(Callback):
    """Sends SIGTERM to its own process at the start of an epoch, or of a test."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self.send)

    def send(self, *_) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_test_start"])
def test_sigterm_interrupts_training_and_test(compose, tmp_path, hook):
    target = f"+callbacks.signalled={{_target_: {__name__}.Signalled, hook: {hook}}}"
    cfg = compose("+experiment=rotation_100pct", "init=random", target)
    with pytest.raises(KeyboardInterrupt), interruptible():
        train(cfg)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == {"status": "interrupted"}


def wait_for_signal(error=None):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    except KeyboardInterrupt:
        raise (error or KeyboardInterrupt) from None


def test_signal_is_recorded():
    recorded = threading.Event()
    with pytest.raises(KeyboardInterrupt), interruptible(), supervised(lambda error: recorded.set()):
        wait_for_signal()
    assert recorded.is_set()


def test_error_after_a_signal_is_an_interruption():
    with pytest.raises(KeyboardInterrupt), interruptible(), supervised(lambda error: None):
        wait_for_signal(ValueError("an error of the library that was interrupted"))


def test_resumed_run_waits_for_the_process_before(tmp_path):
    begun = threading.Event()

    def work():
        with lock_run_dir(tmp_path):
            begun.set()
            time.sleep(0.5)

    earlier = threading.Thread(target=work)
    earlier.start()
    begun.wait()
    with pytest.raises(ConfigError, match="another process"), lock_run_dir(tmp_path):
        pass
    with lock_run_dir(tmp_path, wait=True):
        earlier.join()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "number", "status"), [(0, "SIGTERM", 143), (1, "SIGTERM", 143), (1, "SIGKILL", 1)]
)
def test_signal_to_one_process_ends_both(command, tmp_path, rank, number, status):
    folder = tmp_path / "run"
    settings = ("+experiment=rotation_100pct", "init=random", "trainer=ddp_cpu", "scale.published_epochs=500")
    process = subprocess.Popen(
        command(*settings, f"paths.run={folder}", f"hydra.run.dir={folder}"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not (folder / "checkpoints" / "last.ckpt").is_file():
        assert process.poll() is None
        time.sleep(0.1)
    listed = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "ddp_cpu"], capture_output=True, text=True
    )
    (other,) = map(int, listed.stdout.split())
    os.kill((process.pid, other)[rank], getattr(signal, number))
    output, _ = process.communicate(timeout=30)  # both have closed their output
    assert process.returncode == status, output
    assert "Traceback" not in output
    record = json.loads((folder / "metrics.json").read_text())
    assert record["status"] == ("failed" if number == "SIGKILL" else "interrupted")
    assert number == "SIGTERM" or "process 1 of this run was ended by SIGKILL" in record["error"]
