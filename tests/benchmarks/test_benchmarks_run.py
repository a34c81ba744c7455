"""Every benchmark, tool and example runs at its smallest size and prints what the documentation quotes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from html_page import CHROMIUM
from tiny_run import REPOSITORY, TINY

pytestmark = pytest.mark.slow

NONE = "--idrid=none"
PARTS = ("--only", "crop", "all", "--parts", "edges", "mean colour")

BENCHMARKS = {
    "busy_machine": (("--rounds=1", "--repeats=1"), ("training step: ", "trees: ", "beside 1 busy")),
    "calibration": (("--seeds", "1"), ("CornHead", "largest increase of NLL with N = 160")),
    "crop_shortcuts": (("--count", "130", "--size", "32"), ("| demo | silhouette |", "learnt metric")),
    "demo_drawing": (("--count", "3", "--size", "64"), ("photographs/s on one core at 64 px",)),
    "dense_shortcuts": (("--count", "20", "--size", "32"), ("| demo | inpainting |", "never recorded")),
    "duplicates": (("--count", "6", NONE), ("recall: mirrored", "exposures of different eyes")),
    "duplicates choose": (("--count", "6", NONE, "--half", "choose"), ("demo: similarity", "99.5%")),
    "duplicates timing": (
        ("--count", "6", NONE, "--timing", "40", "--retrieval", "40"),
        ("40 photographs, ", "retrieval alone, 40 photographs"),
    ),
    "focus": (("--count", "6", NONE), ("demo at 96 px, sigma 4.0, noise 4.0",)),
    "loading": (
        ("--drawn=64", "--size=32", "--batch-size=4", "--rounds=2", "--store-batches=2"),
        ("from the store", "ratio"),
    ),
    "null_tables": (
        ("--tables=3", "--resamples=50"),
        ("| chosen, 3 seeds x 3 label draws |", "p < 0.05 in "),
    ),
    "patch_shortcuts cpc": (
        ("--pretext", "cpc", "--count", "40", "--size", "64", "--epochs", "1", *PARTS),
        ("| demo | edges |", "| demo | mean colour |"),
    ),
    "patch_shortcuts jigsaw": (
        ("--pretext", "jigsaw", "--count", "40", "--size", "64", "--epochs", "1", "--mixed", *PARTS),
        ("| demo | mean colour |",),
    ),
    "patch_shortcuts relative_patch": (
        ("--pretext", "relative_patch", "--count", "40", "--size", "64", "--epochs", "1", *PARTS),
        ("| demo | edges |", "| demo | mean colour |"),
    ),
    "photograph_quality": (
        ("--count", "16", NONE, "--originals=none", f"--packages={REPOSITORY / 'docs' / 'images'}"),
        ("the other half", "demo, other colours", "verdicts on other images"),
    ),
    "preparation": (
        ("--drawn=64", "--count=6", "--size=32", "--workers=1", "--rounds=1"),
        ("ratio", "peak memory", "again, labels changed"),
    ),
    "rotation_shortcuts": (
        ("--count", "40", "--size", "32", "--epochs", "1"),
        ("| demo | silhouette |", "| demo | whole view |"),
    ),
    "startup": (
        ("--runs=1", "+experiment=rotation_10pct", "init=random", *TINY, "paths.outputs={folder}"),
        ("to the first step", "imports, "),
    ),
    "training_step": (
        ("--encoder=resnet18", "--size=32", "--count=100", "--steps=2", "--threads=1", "--only=32-true"),
        ("train()", "bare loop, 32-true"),
    ),
}
"""Arguments and expected output of the benchmarks that need no run."""

RUN_BENCHMARKS = {
    "abstention": (
        ("{run}", "--changes", "unchanged", "light x 0.12"),
        ("| unchanged |", "| light x 0.12 |"),
    ),
    "heat_on_lesions": (("{run}", "--targets", "expected", "--seeds", "1"), ("| map | gain |", "| dark |")),
    "int8": (("{run}",), ("| run | MB, 32 bits |", "| run | photographs |")),
    "prediction": (
        ("{run}", "{photographs}", "--counts", "2", "--workers", "1"),
        ("| 2 | 1 | 16 |",),
    ),
}
"""The same for those that measure a grading run."""


@pytest.fixture(scope="module")
def call(tmp_path_factory):
    """``call("benchmarks/NAME.py", ...)``: run a script and return what it prints."""
    folder = tmp_path_factory.mktemp("scripts")

    def make(*arguments, **places):
        filled = [str(each).format(folder=folder, **places) for each in arguments]
        done = subprocess.run(
            [sys.executable, *filled],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return make


@pytest.fixture(scope="module")
def run(call, tmp_path_factory):
    """A grading run on 160 drawn photographs, and the folder of these."""
    root = tmp_path_factory.mktemp("run")
    settings = ("+experiment=rotation_100pct", "init=random", *TINY, "data.count=160")
    call("train.py", *settings, f"paths.outputs={root}", f"hydra.run.dir={root}/run")
    (photographs,) = root.glob("demo/*/images")
    return {"run": root / "run", "photographs": photographs}


def assert_printed(output, expected):
    assert [text for text in expected if text not in output] == [], output


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_runs(call, name):
    arguments, expected = BENCHMARKS[name]
    assert_printed(call(f"benchmarks/{name.split()[0]}.py", *arguments), expected)


@pytest.mark.parametrize("name", RUN_BENCHMARKS)
def test_benchmark_of_a_run_runs(call, run, name):
    arguments, expected = RUN_BENCHMARKS[name]
    assert_printed(call(f"benchmarks/{name}.py", *arguments, **run), expected)


def test_every_benchmark_is_run():
    run = {name.split()[0] for name in (*BENCHMARKS, *RUN_BENCHMARKS)}
    assert run == {path.stem for path in (REPOSITORY / "benchmarks").glob("*.py")} - {"common"}


@pytest.mark.parametrize("name", ["loading", "preparation"])
def test_missing_originals_are_named(name, tmp_path):
    command = [sys.executable, f"benchmarks/{name}.py", f"--originals={tmp_path}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"no photographs in {tmp_path}: set --originals=DIR, or --drawn=1424 to draw some\n"


def test_pictures_of_the_documentation_are_made(call, finished_run, tmp_path):
    names = ["demo", "audit", "explanations", "app"] if CHROMIUM else ["demo"]
    call("tools/pictures.py", *names, f"--out={tmp_path}", f"--checkpoint={finished_run()}")
    assert all((tmp_path / f"{name}.jpg").stat().st_size > 10_000 for name in names)


def test_behaviour_recorder_compares_recordings(call, tmp_path):
    recording = tmp_path / "before.json"
    recorder = ("tools/behaviour.py", "--only=prepare")
    call(*recorder, f"--json={recording}")
    assert "0 of 3 files differ" in call(*recorder, f"--compare={recording}")
    hashes = json.loads(recording.read_text())
    recording.write_text(json.dumps(dict.fromkeys(hashes, "changed")))
    with pytest.raises(AssertionError, match="3 of 3 files differ"):
        call(*recorder, f"--compare={recording}")


def test_example_grades_with_an_exported_file(call, run, tmp_path):
    model = tmp_path / "grader.onnx"
    entry_point = ("-c", "from drgrade.cli import main; main()")
    call(*entry_point, "export", f"checkpoint={run['run']}", "format=onnx", f"out={model}")
    photograph = next(Path(run["photographs"]).glob("*.jpg"))
    output = call("examples/grade_photograph.py", model, photograph)
    assert_printed(output, ("'probabilities':", "'grade':"))
