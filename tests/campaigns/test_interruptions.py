"""SIGKILL at random moments, full disks, no inodes, read-only folders: a run ends with the same result."""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from tiny_run import TINY

import drgrade

pytestmark = pytest.mark.campaign

SETTINGS = [*TINY, "+experiment=rotation_50pct", "protocol.epochs=6", "pretext.epochs=6", "resume=auto"]


class TrialRun:
    """A run with pre-training, whose outputs lie in one folder."""

    def __init__(self, folder, shared):
        self.folder = folder
        self.run = folder / "run"
        self.overrides = [*SETTINGS, *shared, f"paths.outputs={folder}/out", f"hydra.run.dir={self.run}"]

    def command(self):
        """Run the command to its end; return its status and output, which must hold no traceback."""
        command = [sys.executable, "-m", "drgrade.cli.train", *self.overrides]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        output = done.stdout + done.stderr
        assert "Traceback" not in output, output
        return done.returncode, output

    def result(self):
        """Return what must not depend on interruptions."""
        (encoder,) = (self.folder / "out" / "encoders").glob("*/encoder.json")
        assert (self.run / "model_card.md").is_file()
        assert not list(self.folder.rglob("*.partial"))
        split = (self.run / "split.csv").read_text()
        predictions = (self.run / "predictions.csv").read_text()
        card = json.loads(encoder.read_text())
        return [json.loads((self.run / "metrics.json").read_text()), card["sha256"], split, predictions]


@pytest.fixture(scope="session")
def whole(shared, tmp_path_factory):
    """Return the result of a run that nothing interrupts."""
    run = TrialRun(tmp_path_factory.mktemp("whole"), shared)
    assert run.command()[0] == 0
    return run.result()


@pytest.fixture
def mounted(tmp_path):
    """``mounted(options)``: mount a temporary file system, a second one beside that of ``$TMPDIR``."""
    mounts = []

    def mount(options):
        folder = tmp_path / f"mount{len(mounts)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(command, check=False).returncode:
            pytest.skip("only root can mount a file system")
        mounts.append(folder)
        return folder

    yield mount
    for folder in mounts:
        subprocess.run(["umount", "--lazy", folder], check=True)


def train_quietly(overrides, output):
    """Run in a process that is to be killed."""
    with Path(output).open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    drgrade.train(*overrides)


@pytest.mark.parametrize("second_file_system", [False, True])
def test_run_killed_at_random_moments_has_the_same_result(
    second_file_system, scale, rng, whole, shared, mounted, tmp_path
):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["drgrade.training.run", "drgrade.model_card.card"])
    assert tempfile.gettempdir() != str(tmp_path)
    place = mounted("size=200m") if second_file_system else tmp_path
    output = tmp_path / "output"
    kills, seconds, runs, most = 0, 6.0, 0, -(-5 * scale // 2)
    while kills < most:
        run = TrialRun(place / f"killed{runs}", shared)
        for _ in range(4):
            process = context.Process(target=train_quietly, args=(run.overrides, output))
            started = time.monotonic()
            process.start()
            process.join(rng.uniform(0, seconds))
            ended = process.exitcode is not None
            process.kill()
            process.join()
            if ended:
                assert process.exitcode == 0, output.read_text()
                seconds = 0.9 * (time.monotonic() - started) + 0.5
                break
            kills += 1
        status, text = run.command()
        assert status == 0, text
        assert run.result() == whole
        runs += 1
    where = "on a second file system" if second_file_system else "on one file system"
    print(f"{kills} times SIGKILL {where}: {runs} runs resumed with the same result, 0 lost")


def fill(folder):
    with (folder / "fill").open("wb") as file:
        try:
            while True:
                file.write(bytes(2**16))
                file.flush()
        except OSError:
            pass


def use_all_inodes(folder):
    try:
        for number in range(100_000):
            (folder / f"fill{number}").touch()
    except OSError:
        pass


@pytest.mark.parametrize(
    ("exhaust", "options"), [(fill, "size=24m"), (use_all_inodes, "size=200m,nr_inodes=200")]
)
def test_run_on_a_full_disk_resumes_when_there_is_room(exhaust, options, scale, rng, whole, shared, mounted):
    place = mounted(options)
    ends = []
    for number in range(scale):
        run = TrialRun(place / f"full{number}", shared)
        process = subprocess.Popen(
            [sys.executable, "-m", "drgrade.cli.train", *run.overrides],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        # From the first checkpoint of the pre-training to the end of the run.
        while process.poll() is None and not list(place.glob("*/out/encoders/*/checkpoints/last.ckpt")):
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 4))
        exhaust(place)
        text = process.communicate(timeout=900)[0]
        assert "Traceback" not in text, text
        assert process.returncode == 0 or text.count("error: ") == 1, text
        ends.append(process.returncode)
        for path in place.glob("fill*"):
            path.unlink()
        status, text = run.command()
        assert status == 0, text
        assert run.result() == whole
        subprocess.run(["rm", "-r", str(run.folder)], check=True)
    print(f"{options} used up {scale} times ({sum(ends)} runs ended with one line): all resumed, 0 lost")


def test_read_only_outputs_give_one_line(shared, mounted):
    place = mounted("size=10m")
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    status, text = TrialRun(place / "run", shared).command()
    assert status == 1
    assert text.count("error: ") == 1
    assert "Read-only file system" in text
    print("read-only outputs: 1 run ended with one line")
