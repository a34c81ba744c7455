"""Tests of the findings of patients on both sides of a published split."""

import json
import shutil
from itertools import product

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from drgrade.auditing.checks import patient_findings, patients_comparable
from drgrade.auditing.html_report import render, write_audit
from drgrade.config import CONF
from drgrade.data.sources.folder import Folder
from drgrade.settings import AuditThresholds


def manifest(*photographs):
    """Each photograph: (data set, patient, split)."""
    rows = [
        {"image_id": f"i{n}", "path": f"i{n}.jpg", "grade": n % 5, "dataset": d, "patient_id": p, "split": s}
        for n, (d, p, s) in enumerate(photographs)
    ]
    types = dict.fromkeys(["image_id", "path", "dataset", "patient_id", "split"], "string")
    columns = ["image_id", "path", "grade", "dataset", "patient_id", "split"]
    return pd.DataFrame(rows, columns=columns).astype(types | {"grade": "Int64"})


def patients_of(table):
    return [(found.dataset, found.detail.split(":")[0]) for found in patient_findings(table)]


def test_patient_with_one_eye_in_train_and_one_in_test_gives_one_finding():
    table = manifest(("one", "p", "train"), ("one", "p", "train"), ("one", "p", "test"), ("one", "q", "test"))
    (found,) = patient_findings(table)
    assert (found.finding, found.image_id, found.other_image_id) == ("patient_across_splits", "i2", "i0")
    assert (found.split, found.other_split, found.grade, found.other_grade) == ("test", "train", 2, 0)
    assert found.detail == "patient p: 2 train, 1 test"


@pytest.mark.parametrize(
    ("splits", "across"),
    [(("train", "val"), 0), (("val", "test"), 1), (("test", "test"), 0), (("test", None), 0)],
)
def test_published_val_belongs_to_the_training_side(splits, across):
    assert len(patients_of(manifest(*(("one", "p", split) for split in splits)))) == across


@given(
    st.lists(
        st.sampled_from(list(product(["one", "two"], ["p", "q", None], ["train", "val", "test", None]))),
        max_size=12,
    )
)
def test_patient_findings_agree_with_a_naive_search(photographs):
    expected = set()
    for (dataset, patient, split), (other_dataset, other_patient, other) in product(photographs, repeat=2):
        same = (dataset, patient) == (other_dataset, other_patient)
        if same and patient is not None and split == "test" and other in ("train", "val"):
            expected.add((dataset, f"patient {patient}"))
    found = patients_of(manifest(*photographs))
    assert len(found) == len(expected)
    assert set(found) == expected


def test_patients_are_comparable_only_if_known_on_both_sides():
    assert patients_comparable(manifest(("one", "p", "train"), ("one", "q", "test")))
    assert not patients_comparable(manifest(("one", "p", "train"), ("one", None, "test")))
    assert not patients_comparable(manifest(("one", "p", "train"), ("two", "p", "test")))


@pytest.fixture(scope="module")
def two_eyed(drawn, tmp_path_factory):
    """20 patients with one eye in train and one in test, without other defects."""
    root = tmp_path_factory.mktemp("two_eyed")
    rows = []
    for number, path in enumerate(drawn.read().manifest["path"]):
        shutil.copyfile(drawn.root / path, root / f"{number:02d}.jpg")
        split = "test" if number % 2 else "train"
        rows.append((f"{number:02d}.jpg", number % 5, f"<b>{number // 2:02d}", split))
    table = pd.DataFrame(rows, columns=["image", "grade", "patient", "split"])
    table.to_csv(root / "labels.csv", index=False)
    return Folder(root, patient_column="patient", split_column="split", name="two_eyed")


def test_default_audit_fails_on_patients_on_both_sides(make_audit, two_eyed, tmp_path):
    settings = AuditThresholds(fail_on=list(OmegaConf.load(CONF / "audit.yaml").fail_on))
    audit = make_audit(two_eyed, settings)
    assert audit.failing == ["patient_across_splits"]
    assert set(audit.findings["finding"]) == {"patient_across_splits"}
    write_audit(audit, tmp_path / "audit")
    facts = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert (facts["status"], facts["findings/patient_across_splits"]) == ("failed", 20)
    assert facts["patients_compared"] is True
    table = pd.read_csv(tmp_path / "audit" / "findings.csv")
    assert table["detail"].tolist() == [f"patient <b>{n:02d}: 1 train, 1 test" for n in range(20)]
    assert (table["severity"] == "error").all()


def test_page_truncates_the_table_of_patients(make_audit, two_eyed, monkeypatch):
    audit = make_audit(two_eyed)
    assert "patient &lt;b&gt;19: 1 train, 1 test" in render(audit)
    assert "<b>" not in render(audit)
    monkeypatch.setattr("drgrade.auditing.html_report._IN_LIST", 3)
    page = render(audit)
    assert "3 of 20; all are in" in page
    assert "patient &lt;b&gt;19" not in page


def test_page_reports_that_patients_are_unknown(make_audit, drawn):
    unknown = Folder(drawn.root, csv=None, name="unknown")
    assert "Not compared: no data set gives patients" in render(make_audit(unknown))


def test_page_shows_the_present_folder_of_a_moved_data_set(make_audit, two_eyed, tmp_path):
    before = make_audit(two_eyed)
    moved = tmp_path / "moved"
    shutil.copytree(two_eyed.root, moved)
    after = make_audit(Folder(moved, patient_column="patient", split_column="split", name="two_eyed"))
    # The store is the one that was prepared before.
    assert after.stores[0].folder == before.stores[0].folder
    assert after.stores[0].info["root"] == str(two_eyed.root)
    page = render(after)
    assert str(moved) in page
    assert str(two_eyed.root) not in page
