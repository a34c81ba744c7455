"""The public API: these tests import nothing of the project but ``drgrade``."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import drgrade

SMALL = (
    "data.count=40",
    "data.size=96",
    "data.image_size=32",
    "data.workers=1",
    "protocol.epochs=1",
    "protocol.val_fraction=0.2",
    "logger=none",
    "trainer=cpu",
)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def metrics(outputs):
    return drgrade.train("data=demo", *SMALL, f"paths.outputs={outputs}", seed=3, fold=1)


@pytest.fixture(scope="module")
def photographs(metrics, outputs):
    return sorted(outputs.glob("demo/*/images/*.jpg"))


def test_train_returns_the_metrics_and_the_folder(metrics, outputs):
    folder = Path(metrics["folder"])
    assert folder.is_relative_to(outputs)
    stored = json.loads((folder / "metrics.json").read_text())
    assert stored == {name: value for name, value in metrics.items() if name != "folder"}
    assert (stored["seed"], str(stored["fold"]), stored["status"]) == (3, "1", "finished")


def test_a_loaded_model_grades_paths_arrays_and_images(metrics, photographs):
    grader = drgrade.load(metrics["folder"], device="cpu", abstain=False)
    path = photographs[0]
    image = Image.open(path).convert("RGB")
    rows = grader.predict([path, str(path), np.asarray(image), image])
    assert {row.grade for row in rows} <= {*range(5)}
    np.testing.assert_allclose([row.probabilities for row in rows], [rows[0].probabilities] * 4, atol=1e-6)


def test_a_loaded_model_explains(metrics, photographs):
    pytest.importorskip("captum")
    explained = drgrade.load(metrics["folder"], device="cpu", abstain=False).explain(photographs[0])
    assert len(explained) == 1


def test_predict_writes_a_table(metrics, photographs, outputs):
    summary = drgrade.predict(
        checkpoint=[metrics["folder"]],
        input=[str(photographs[0].parent)],
        out=str(outputs / "predicted"),
        device="cpu",
    )
    lines = (summary.folder / "predictions.csv").read_text().splitlines()
    assert len(lines) == 1 + len(photographs)


def test_evaluate_repeats_the_test(metrics, outputs):
    result = drgrade.evaluate(
        "trainer=cpu",
        "own_run=true",
        f"paths.outputs={outputs}",
        checkpoint=[metrics["folder"]],
        resamples=100,
    )
    assert result.metrics["test/qwk"] == pytest.approx(metrics["test/qwk"], abs=1e-9)


def test_prepare_and_audit(outputs):
    data = ["data=demo", "data.count=40", "data.size=96", "data.workers=1", f"paths.outputs={outputs}"]
    (store,) = drgrade.prepare(*data, "data.image_size=32")
    assert (len(store), store.image_size) == (40, 32)
    assert drgrade.audit(*data).summary()


def test_report_writes_a_page(metrics, outputs):
    page = drgrade.report(metrics["folder"], out=str(outputs / "report"), resamples=200)
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_a_script_needs_no_main_guard(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import drgrade\n"
        "(store,) = drgrade.prepare('data=demo', 'data.count=12', 'data.size=96', 'data.workers=2')\n"
        "print('photographs:', len(store))\n"
    )
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    done = subprocess.run(
        [sys.executable, script],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "photographs: 12"


@pytest.mark.parametrize(
    ("function", "given", "setting"),
    [
        (drgrade.train, {"label_fracton": 0.1}, "label_fraction"),
        (drgrade.predict, {"sensitivty": 0.9}, "sensitivity"),
        (drgrade.report, {"resample": 200}, "resamples"),
    ],
)
def test_an_unknown_setting_is_an_error_with_the_nearest_name(function, given, setting):
    with pytest.raises(drgrade.DrgradeError, match=f"did you mean {setting}"):
        function(**given)


@pytest.mark.parametrize(
    ("variables", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
)
def test_waiting_threads_spin_for_microseconds_unless_the_user_decides(variables, spins):
    """libgomp prints what it has read when it is loaded, once for PyTorch and once for scikit-learn."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", "import drgrade, torch, sklearn.ensemble"],
        env={**environment, "OMP_DISPLAY_ENV": "verbose", **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)) == {spins}


def test_commands_do_not_import_torch_before_the_setting():
    code = "import sys, drgrade.cli, drgrade.cli.train; assert not {'torch', 'sklearn'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
