"""Runs over several data sets, and with a given split: from the config to metrics.json."""

import json
import shutil

import pandas as pd
import pytest
from hydra import compose as compose_any
from hydra import initialize_config_dir
from tiny_run import TINY

from drgrade.config import CONF, further_sources
from drgrade.data.sources.demo import Demo
from drgrade.data.sources.folder import Folder
from drgrade.errors import ConfigError, DataError
from drgrade.evaluation.evaluation import evaluate
from drgrade.training.build import make_photographs
from drgrade.training.run import train

GRADING = ("+experiment=rotation_100pct", "init=random", "trainer.max_steps=2")


def folder_of(demo, root):
    """Drawn photographs as a folder with a CSV file."""
    manifest = demo.read().manifest
    names = manifest["path"].str.rpartition("/")[2]
    root.mkdir()
    for path, name in zip(manifest["path"], names, strict=True):
        shutil.copyfile(demo.root / path, root / name)
    pd.DataFrame({"image": names, "grade": manifest["grade"]}).to_csv(root / "labels.csv", index=False)
    return root


@pytest.fixture
def other(tmp_path):
    """Twelve photographs of another data set, as a folder with a CSV file."""
    return folder_of(Demo(tmp_path / "drawn", count=12, size=64, seed=7, workers=1), tmp_path / "elsewhere")


def item(root, name="elsewhere"):
    return f"{{data: folder, name: {name}, root: {root}}}"


def test_further_data_sets_are_given_by_name_or_settings(compose, other):
    cfg = compose(f"data.unlabelled=[ddr,{item(other)}]", "paths.data=/somewhere")
    sources = further_sources(cfg)
    assert (sources["labelled"], sources["external"]) == ([], [])
    by_name, described = sources["unlabelled"]
    assert (by_name.name, str(by_name.root)) == ("ddr", "/somewhere/ddr")
    assert isinstance(described, Folder)
    assert (described.name, described.root) == ("elsewhere", other)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "data.unlabelled=[eyepac]",
            r"data\.unlabelled: there is no data set 'eyepac'; did you mean eyepacs",
        ),
        ("data.external=[folder]", r"data=folder needs a folder: data\.external=\[\{data: folder, root"),
        ("data.labelled=eyepacs", r"data\.labelled=eyepacs is not allowed: list"),
        (
            "data.labelled=[{data: ddr, rooot: x}]",
            r"'rooot' cannot be set for data=ddr; available: name, root",
        ),
        ("data.external=[{data: ddr, illumination: clahe}]", r"'illumination' cannot be set for data=ddr"),
        ("data.external=[{data: ddr, fold: 3}]", r"'fold' cannot be set"),
        ("data.labelled=[demo]", r"demo occurs twice"),
    ],
)
def test_invalid_further_data_set_is_refused(compose, setting, message):
    with pytest.raises(ConfigError, match=message):
        make_photographs(compose(setting))


def test_missing_data_set_error_names_its_source(compose, tmp_path):
    with pytest.raises(DataError, match=r"kaggle competitions download") as error:
        train(compose(*GRADING, "data.unlabelled=[eyepacs]", f"paths.data={tmp_path}/none"))
    assert str(tmp_path / "none" / "eyepacs") in str(error.value)


def test_external_data_set_is_tested_after_the_test_set_and_evaluated(compose, other, tmp_path):
    metrics = train(compose(*GRADING, f"data.external=[{item(other)}]"))
    alone = train(compose(*GRADING, run="alone"))
    for name in ("qwk", "accuracy", "loss", "auroc"):
        assert metrics[f"test/{name}"] == alone[f"test/{name}"]
        assert f"external/elsewhere/{name}" in metrics
    split = pd.read_csv(tmp_path / "run" / "split.csv")
    external = split["subset"] == "external"
    assert external.sum() == 12
    predictions = pd.read_csv(tmp_path / "run" / "predictions_elsewhere.csv")
    assert set(predictions["image_id"]) == set(split["image_id"][external])
    assert (predictions["grade"] == predictions["predicted"]).mean() == pytest.approx(
        metrics["external/elsewhere/accuracy"]
    )
    assert (tmp_path / "run" / "confusion_elsewhere.csv").is_file()
    assert set(pd.read_csv(tmp_path / "run" / "predictions.csv")["image_id"]) == set(
        split["image_id"][split["subset"] == "test"]
    )
    paths = [
        f"checkpoint={tmp_path}/run",
        "own_run=true",
        f"paths.run={tmp_path}/again",
        "paths.outputs=unused",
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        again = evaluate(compose_any("evaluate", [*paths, "trainer=cpu"])).metrics
    assert {k: v for k, v in again.items() if "/" in k} == {k: v for k, v in metrics.items() if "/" in k}


def test_unlabelled_pools_join_only_the_pretraining(compose, other, tmp_path):
    cfg = compose(
        "+experiment=msssl_pretrain",
        "pretext=rotation",
        f"data.unlabelled=[{item(other)}]",
        "trainer.max_steps=1",
    )
    train(cfg)
    split = pd.read_csv(tmp_path / "run" / "split.csv")
    pool = split["image_id"].str.startswith("elsewhere/")
    assert set(split["subset"][pool]) <= {"train", "val"}
    seen = (tmp_path / "run" / "seen.txt").read_text().split()
    assert len(seen) == (split["subset"] != "test").sum()


def test_run_is_reproduced_from_its_split_file(compose, tmp_path):
    first = train(compose(*GRADING, "fold=2"))
    given = f"split.file={tmp_path}/run/split.csv"
    second = train(compose(*GRADING, given, run="again"))
    assert second["split_hash"] == first["split_hash"]
    assert second["test/qwk"] == first["test/qwk"]
    quarter = train(compose(*GRADING, given, "label_fraction=0.25", run="quarter"))
    assert quarter["split_hash"] != first["split_hash"]
    test_sides = [
        pd.read_csv(tmp_path / run / "predictions.csv")["image_id"].tolist() for run in ("run", "quarter")
    ]
    assert test_sides[0] == test_sides[1]


def test_split_remarks_are_logged_and_recorded(shared, tmp_path, caplog):
    """A photograph of the training set is copied into the published test set, with another grade."""
    demo = Demo(tmp_path / "drawn", count=24, size=64, seed=3, workers=1)
    manifest = demo.read().manifest
    root = tmp_path / "leaky"
    root.mkdir()
    rows = ["image,grade,split"]
    for i, (path, grade) in enumerate(zip(manifest["path"], manifest["grade"], strict=True)):
        shutil.copyfile(demo.root / path, root / f"{i}.png")
        rows.append(f"{i}.png,{grade},{'test' if i % 4 == 0 else 'train'}")
    shutil.copyfile(root / "1.png", root / "copy.png")
    rows.append(f"copy.png,{(manifest['grade'][1] + 1) % 5},test")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    caplog.set_level("INFO")
    of_the_demo = ("data.count", "data.size")
    settings = [
        each for each in (*TINY, *shared, *GRADING) if not each.startswith((*of_the_demo, "data.root"))
    ]
    folder = ["data=folder", "scale=demo", f"data.root={root}", "data.split_column=split", "fold=published"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        train(compose_any("train", [*settings, *folder, f"paths.run={tmp_path}/run"]))
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    split = pd.read_csv(tmp_path / "run" / "split.csv", dtype=str).set_index("image_id")
    assert split["subset"][["copy", "1"]].tolist() == ["test", "excluded"]
    assert split["grade"]["copy"] == str((manifest["grade"][1] + 1) % 5)
    assert [value for name, value in record.items() if name.startswith("split/")]
    assert any("copies in the published test set" in message for message in caplog.messages)


def test_pretraining_is_not_resumed_with_another_split(compose, tmp_path):
    """Otherwise ``seen.txt`` would miss photographs that it learns from."""
    train(compose("+experiment=rotation_pretrain", "pretrain_on=train", "trainer.max_epochs=1"))
    split = pd.read_csv(tmp_path / "run" / "split.csv")
    other = split.assign(subset=["test" if i % 3 else "train" for i in range(len(split))])
    other.drop(columns="grade").to_csv(tmp_path / "other.csv", index=False)
    before = (tmp_path / "run" / "seen.txt").read_bytes()
    with pytest.raises(DataError, match="differ from those the run"):
        train(
            compose(
                "+experiment=rotation_pretrain",
                "pretrain_on=train",
                "trainer.max_epochs=2",
                f"split.file={tmp_path}/other.csv",
                f"resume={tmp_path}/run",
            )
        )
    assert (tmp_path / "run" / "seen.txt").read_bytes() == before


def test_run_is_not_resumed_with_changed_pixels(tmp_path):
    demo = Demo(tmp_path / "drawn", count=40, size=64, seed=3, workers=1)
    root = folder_of(demo, tmp_path / "photos")
    of_the_demo = ("data.count", "data.size", "data.root")
    settings = [each for each in (*TINY, *GRADING) if not each.startswith(of_the_demo)]
    settings += ["data=folder", "scale=demo", f"data.root={root}", f"paths.stores={tmp_path}/stores"]

    def run(*more):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return train(compose_any("train", [*settings, f"paths.run={tmp_path}/run", *more]))

    run()
    first, second = pd.read_csv(root / "labels.csv")["image"][:2]
    shutil.copyfile(root / second, root / first)
    with pytest.raises(DataError, match="differ from those the run"):
        run(f"resume={tmp_path}/run")
