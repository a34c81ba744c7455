"""The model card: metadata, results, limits, missing files, and no private names."""

import json
import re
import shutil
from pathlib import Path

import hydra
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from hydra.utils import get_class
from omegaconf import OmegaConf
from tiny_run import REPOSITORY, TINY

from drgrade import __version__
from drgrade.config import CONF
from drgrade.errors import ConfigError, DataError
from drgrade.metrics.functional import grading_metrics
from drgrade.model_card import card as card_module
from drgrade.model_card.card import (
    DRGRADE,
    MODEL_CARD,
    NOTICE,
    public_command,
    render_model_card,
    write_model_card,
)
from drgrade.model_card.facts import papers, papers_of, read_run_files
from drgrade.prediction.checkpoint import load_model
from drgrade.prediction.grader import Grader
from drgrade.runs.run_dir import read_metrics
from drgrade.stats import formatting
from drgrade.training.run import train

EXAMPLE = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="session")
def card(finished_run):
    """Render the card of the plain run."""
    return render_model_card(read_run_files(finished_run()), resamples=200)


@pytest.fixture
def run_copy(finished_run, tmp_path):
    """Copy the plain run, to change it."""
    return Path(shutil.copytree(finished_run(), tmp_path / "run"))


def _set(run, **settings):
    cfg = OmegaConf.load(run / "config.yaml")
    for name, value in settings.items():
        OmegaConf.update(cfg, name.replace("__", "."), value, force_add=True)
    OmegaConf.save(cfg, run / "config.yaml")


def _forget_drawings(run):
    """Turn a run into one of an earlier version, which did not record its drawings."""
    path = run / "metrics.json"
    record = {name: value for name, value in json.loads(path.read_text()).items() if name != "drawings"}
    path.write_text(json.dumps(record))


def _predict(run, predicted, probabilities):
    """Replace the predictions of a run, and its metrics accordingly."""
    predictions = pd.read_csv(run / "predictions.csv")
    predictions["predicted"] = predicted
    predictions[[f"p{k}" for k in range(5)]] = probabilities
    predictions.to_csv(run / "predictions.csv", index=False)
    as_tensors = (torch.tensor(predictions[name].tolist()) for name in ("predicted", "grade"))
    metrics = grading_metrics(torch.from_numpy(probabilities), *as_tensors)
    record = read_metrics(run) | {f"test/{name}": value for name, value in metrics.items()}
    (run / "metrics.json").write_text(json.dumps(record))
    return run


@pytest.fixture
def varied(run_copy):
    """Return the plain run with predictions of all grades."""
    grades = pd.read_csv(run_copy / "predictions.csv")["grade"].to_numpy()
    rng = np.random.default_rng(0)
    predicted = np.where(rng.random(len(grades)) < 0.6, grades, rng.integers(0, 5, len(grades)))
    return _predict(run_copy, predicted, rng.dirichlet(np.ones(5), len(grades)).round(6))


@pytest.fixture
def constant(run_copy):
    """Return the plain run with the same prediction for every photograph."""
    count = len(pd.read_csv(run_copy / "predictions.csv"))
    return _predict(run_copy, 1, np.tile([0.1, 0.6, 0.1, 0.1, 0.1], (count, 1)))


def _text(run):
    return render_model_card(read_run_files(run), resamples=50)


def test_header_is_read_by_the_hub(varied):
    record = read_metrics(varied)
    parsed = ModelCard(_text(varied))
    data = parsed.data.to_dict()
    assert (data["license"], data["library_name"]) == ("mit", "drgrade")
    assert data["pipeline_tag"] == "image-classification"
    assert {"diabetic-retinopathy", "research-only", "demo"} <= set(data["tags"])
    results = {result.metric_name: result for result in parsed.data.eval_results}
    qwk = results["quadratic weighted kappa"]
    assert qwk.metric_value == pytest.approx(record["test/qwk"], abs=5e-5)
    assert qwk.dataset_args["data_hash"] == record["data_hash"]
    low, high = qwk.metric_args["interval_95"]
    assert low <= qwk.metric_value <= high
    assert parsed.text.lstrip().startswith("# ")


def test_constant_resamples_give_no_interval(constant):
    card = _text(constant)
    (qwk,) = (each for each in ModelCard(card).data.eval_results if each.metric_type == "cohen_kappa")
    assert qwk.metric_value == 0
    assert "interval_95" not in qwk.metric_args
    assert "nan" not in card


def test_metrics_are_those_of_the_run_with_intervals(varied):
    files, card = read_run_files(varied), _text(varied)
    run, found = files.tested, files.estimates(500)
    assert found["qwk"].value == run.record["test/qwk"]
    naive = _naive_recall(run, 0, 500)
    assert (found["recall_0"].interval.low, found["recall_0"].interval.high) == pytest.approx(naive, abs=0.1)
    assert f"| quadratic weighted kappa (QWK) | {formatting.decimal(run.record['test/qwk'])} |" in card


def test_card_contains_selective_prediction(varied):
    card, found = _text(varied), read_run_files(varied).estimates(500)
    assert "## Selective prediction" in card
    assert f"| QWK | {formatting.decimal(found['qwk'].value, 2)} (" in card
    assert "| wanted QWK | refer above |" in card


def _naive_recall(run, grade, resamples):
    """Compute the interval by drawing the groups one by one."""
    rng, groups = np.random.default_rng(0), np.unique(run.groups)
    shares = []
    for _ in range(resamples):
        rows = np.concatenate([np.flatnonzero(run.groups == g) for g in rng.choice(groups, len(groups))])
        own = rows[run.grades[rows] == grade]
        if len(own):
            shares.append(np.mean(run.predicted[own] == grade))
    return np.percentile(shares, [2.5, 97.5])


def test_photographs_are_counted_by_subset_and_grade(finished_run, card):
    split = pd.read_csv(finished_run() / "split.csv")
    for subset, own in split.groupby("subset"):
        counts = [int((own["grade"] == grade).sum()) for grade in range(5)]
        cells = [subset, *counts, len(own) - sum(counts), len(own), own["group"].nunique()]
        assert f"| {' | '.join(map(str, cells))} |" in card


def test_confusion_matrix_counts_the_predictions(finished_run, card):
    predictions = pd.read_csv(finished_run() / "predictions.csv")
    for grade in range(5):
        own = predictions[predictions["grade"] == grade]
        counts = [int((own["predicted"] == predicted).sum()) for predicted in range(5)]
        assert f"| **{grade}** {formatting.GRADE_NAMES[grade]} | {' | '.join(map(str, counts))} |" in card


def test_card_contains_the_notices(card):
    assert NOTICE in card
    assert "The photographs are drawn." in card
    assert "do not apply to patients" in card


def test_card_contains_no_path_and_no_photograph(finished_run, card):
    cfg, split = OmegaConf.load(finished_run() / "config.yaml"), pd.read_csv(finished_run() / "split.csv")
    private = [str(finished_run()), str(cfg.data.root), "/tmp", str(Path.home()), *split["image_id"]]
    assert not [each for each in private if each in card]


def test_card_describes_the_data_set_of_the_config(run_copy):
    _set(run_copy, data__source___target_="drgrade.data.sources.messidor2.Messidor2", data__name="messidor2")
    _forget_drawings(run_copy)
    text = _text(run_copy)
    assert "no redistribution" in text
    assert "doi 10.5566/ias.1155" in text
    assert ModelCard(text).data.license == "other"
    assert ModelCard(text).data.license_link.startswith("https://www.adcis.net")
    assert "The photographs are drawn." not in text
    _set(run_copy, data__source___target_="clinic.sources.Ours", data__name="ours")
    text = _text(run_copy)
    assert "ours: clinics, cameras and patients are not known to drgrade." in text
    assert ModelCard(text).data.license_name == "see-the-terms-of-ours"


def test_drawings_among_further_labelled_data_sets_are_stated(run_copy):
    _set(run_copy, data__source___target_="drgrade.data.sources.folder.Folder", data__name="clinic")
    _forget_drawings(run_copy)
    assert not read_run_files(run_copy).is_drawn
    _set(run_copy, data__labelled=["demo"])
    assert read_run_files(run_copy).is_drawn
    assert "The photographs are drawn." in _text(run_copy)


def test_card_names_further_data_sets_with_their_terms(run_copy):
    _set(run_copy, data__unlabelled=["aptos2019", {"data": "folder", "name": "ours", "root": "/home/alice"}])
    text = _text(run_copy)
    assert "| unlabelled | the rules of the Kaggle competition" in text
    assert "ours:" in text
    assert "alice" not in text
    _set(run_copy, data__unlabelled=[], data__external=["idrid"])
    text = _text(run_copy)
    assert "amin-nejad/idrid-disease-grading" in ModelCard(text).data.datasets
    assert "Tested also on idrid; not on any other clinic" in text


def test_missing_files_are_listed(run_copy):
    for name in ("predictions.csv", "provenance.json", "seen.txt"):
        (run_copy / name).unlink()
    text = _text(run_copy)
    for name in ("predictions.csv", "provenance.json", "seen.txt"):
        assert f"`{name}` is missing" in text
    assert "Confusion matrix" not in text
    assert ModelCard(text).data.eval_results is None
    assert f"| {read_metrics(run_copy)['test/accuracy']:.3f} |" in text
    (run_copy / "split.csv").unlink()
    (run_copy / "calibration.json").unlink()
    text = _text(run_copy)
    assert "Photographs by use and grade" not in text
    assert "`calibration.json` is missing" in text


def test_card_of_an_untested_run_has_no_results(finished_run):
    text = _text(finished_run("test=false"))
    assert "Not tested (`test=false`)." in text
    assert ModelCard(text).data.eval_results is None
    assert "predictions.csv" not in text


def test_pretraining_is_described_from_the_files_of_the_encoder(finished_run, tmp_path):
    run = finished_run("init=ssl", f"paths.encoders={tmp_path}/encoders")
    text = _text(run)
    assert "self-supervised pre-training by drgrade (rotation)" in text
    assert "Unsupervised Representation Learning by Predicting Image Rotations" in text
    assert "| pre-training | " in text.split("## Compute")[1]
    pretrained = json.loads(next((tmp_path / "encoders").glob("*/encoder.json")).read_text())
    assert f"{pretrained['steps']} steps, {pretrained['images']} photographs shown" in text
    shutil.rmtree(tmp_path / "encoders")
    assert "`encoder.json of the pre-trained encoder` is missing" in _text(run)


def test_metrics_no_better_than_chance_are_limits(run_copy):
    count = len(pd.read_csv(run_copy / "predictions.csv"))
    text = _text(_predict(run_copy, 3, np.tile([0.1, 0.1, 0.1, 0.6, 0.1], (count, 1))))
    assert "Accuracy is not higher than that of always predicting grade 0" in text
    assert re.search(r"Recall of grade 0.* is 0\.", text)


def test_predictions_that_contradict_the_metrics_are_refused(run_copy):
    predictions = pd.read_csv(run_copy / "predictions.csv")
    predictions["predicted"] = 4 - predictions["grade"]
    predictions.to_csv(run_copy / "predictions.csv", index=False)
    card = (run_copy / MODEL_CARD).read_text()
    with pytest.raises(DataError, match="one of them was changed"):
        write_model_card(run_copy)
    assert (run_copy / MODEL_CARD).read_text() == card


def test_few_labels_and_pretraining_on_test_photographs_are_limits(run_copy):
    _set(run_copy, label_fraction=0.1)
    record = (run_copy / "metrics.json").read_text().replace('"label_fraction": 1.0', '"label_fraction": 0.1')
    record = record.replace('"pretraining_saw_test": false', '"pretraining_saw_test": true')
    (run_copy / "metrics.json").write_text(record)
    text = _text(run_copy)
    assert "Few labels: 10 % of the training labels were used." in text
    assert "Pre-training saw the test photographs, without their grades" in text
    assert "resized to 32 px" in text


def test_licence_can_be_chosen(finished_run):
    artefacts = read_run_files(finished_run())
    text = render_model_card(artefacts, resamples=10, licence="CC-BY-NC-4.0")
    assert ModelCard(text).data.license == "cc-by-nc-4.0"
    with pytest.raises(ConfigError, match="not a licence of the hub"):
        render_model_card(artefacts, resamples=10, licence="ask me/first")


def test_example_of_the_card_runs(finished_run, tmp_path, monkeypatch):
    run = finished_run()
    cfg = OmegaConf.load(run / "config.yaml")
    photograph = next(Path(cfg.data.root).rglob("images/*.jpg"))
    shutil.copyfile(photograph, tmp_path / "photograph.jpg")
    monkeypatch.chdir(tmp_path)
    (example,) = EXAMPLE.findall(render_model_card(read_run_files(run), place=str(run), resamples=10))
    names = {}
    exec(example, names)
    expected = Grader([load_model(run)]).grade(names["photograph"].crop.pixels[None])
    assert torch.equal(names["graded"].probabilities, expected.probabilities)


def test_public_command_shows_no_values_of_unknown_settings():
    shown = public_command(
        ["train.py", "+token=hunter2", "seed=3", "name=${oc.env:KEY}", "optimizer.lr=1e-3"]
    )
    assert shown == "train.py +token=... seed=3 optimizer.lr=1e-3"


def test_public_command_contains_no_paths_and_no_people():
    command = ["/home/alice/drgrade/cli/train.py", "+experiment=msssl_10pct", "data=idrid", "paths.run=/x/y"]
    command += [
        "data.root=/home/alice/idrid",
        "logger.entity=alice",
        "hydra/launcher=slurm",
        "init=~/encoder",
    ]
    command += ["data.root=C:\\eyes", "head.hidden=[1, 2]", "+hydra.job.name=alice", "/home/alice"]
    command += [
        "data.csv=alice.csv",
        "data.patient_column=alice",
        "split.file=alice.csv",
        "init=alice.safetensors",
    ]
    shown = public_command(command)
    assert shown.startswith("train.py +experiment=msssl_10pct data=idrid data.root=... init=...")
    assert "alice" not in shown
    assert "'head.hidden=[1, 2]'" in shown
    assert "data.csv=..." in shown


def test_train_writes_the_card_and_logs_its_errors(shared, tmp_path, monkeypatch, caplog):
    def run(folder):
        overrides = [*TINY, *shared, f"paths.outputs={tmp_path}", f"paths.run={folder}", "protocol=majority"]
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return train(hydra.compose("train", overrides))["status"]

    assert run(tmp_path / "run") == "finished"
    assert NOTICE in (tmp_path / "run" / MODEL_CARD).read_text()

    def fail(folder, record):
        raise DataError("damaged")

    monkeypatch.setattr(card_module, "write_model_card", fail)
    assert run(tmp_path / "other") == "finished"
    assert "model_card.md was not written: damaged" in caplog.text
    assert not (tmp_path / "other" / MODEL_CARD).exists()


def test_every_configurable_part_has_its_papers():
    without = {"CumulativeHead", "RegressionHead", "SoftmaxHead", "LinearProbe", "MajorityProbe"}
    for group in ("encoder", "head", "probe", "pretext"):
        for path in sorted((CONF / group).glob("*.yaml")):
            config = yaml.safe_load(path.read_text())
            node = config.get("head", config) if group == "pretext" else config
            if not isinstance(node, dict) or not str(node.get("_target_")).startswith("drgrade."):
                continue  # a base, or a combination of the others
            assert papers_of(node) or node["_target_"].rsplit(".", 1)[-1] in without, path
    assert {key for keys in papers()["of"].values() for key in keys} == papers()["papers"].keys()


def test_papers_of_backbones_are_found_by_name():
    config = {"_target_": "drgrade.models.msssl.MsSSL", "cnn": "resnet10t", "vit": "test_vit"}
    found = " ".join(papers_of(config))
    assert "Almattar" in found
    assert "Deep Residual Learning" in found
    assert "16x16" in found
    assert "Densely" not in found
    assert papers_of({"name": "vitamin_small"}) == []


def test_drgrade_is_cited_as_in_citation_cff():
    cff = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert cff["title"] in DRGRADE
    assert str(cff["version"]) == __version__
    dois = {each["doi"] for each in cff["references"] if "doi" in each and "Almattar" in str(each)}
    assert all(any(doi in text for text in papers()["papers"].values()) for doi in dois)


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "data").glob("*.yaml")))
def test_every_data_set_is_described_as_on_its_page(name):
    node = yaml.safe_load((CONF / "data" / f"{name}.yaml").read_text())
    if "source" not in node:
        return
    about = get_class(node["source"]["_target_"]).about
    page = (REPOSITORY / "docs" / "datasets" / f"{name}.md").read_text()
    assert about.title
    assert about.terms
    assert about.cameras
    assert bool(about.citations) == (name not in ("demo", "folder"))
    for citation in about.citations:
        for doi in re.findall(r"doi (\S+)", citation):
            assert doi in page


def test_html_in_a_run_is_text_in_its_card(run_copy):
    hostile = "`</td>|\n\n<img src=x onerror=alert(1)>&lt;b> <script>alert(2)</script>"
    (run_copy / "calibration.json").unlink()
    record = read_metrics(run_copy)
    changed = dict.fromkeys(("data_hash", "split_hash", "folds", "encoder_hash"), hostile)
    (run_copy / "metrics.json").write_text(json.dumps(record | changed))
    provenance = json.loads((run_copy / "provenance.json").read_text())
    provenance |= {"commit": hostile, "command": ["train.py", f"seed={hostile}", hostile], "steps": hostile}
    provenance |= {"versions": {hostile: hostile}, "machine": {"processor": hostile, "cores": hostile}}
    (run_copy / "provenance.json").write_text(json.dumps(provenance))
    _set(run_copy, protocol__name=hostile, encoder__name=hostile, data__batch_size=hostile)
    named = run_copy.rename(run_copy.with_name("<img src=x onerror=alert(3)>"))
    text = ModelCard(_text(named)).text
    assert "alert(1)" in text
    assert not re.search(r"<(?!=)[a-z/!]", text)
