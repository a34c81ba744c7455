"""Tests of a whole audit."""

import json

import numpy as np
import pandas as pd
import pytest
from defective_folder import DEFECTS

from drgrade.auditing.checks import PAIR_COLUMNS
from drgrade.auditing.findings import COLUMNS, FINDINGS
from drgrade.auditing.html_report import write_audit
from drgrade.errors import ConfigError, DataError
from drgrade.settings import AuditSettings, AuditThresholds


def found_in(audit):
    columns = audit.findings[["finding", "image_id", "other_image_id"]].astype(object)
    return set(columns.where(columns.notna(), None).itertuples(index=False, name=None))


def test_audit_finds_exactly_the_defects(defective_audit):
    assert found_in(defective_audit) == DEFECTS
    assert len(defective_audit.findings) == len(DEFECTS)


def test_data_set_without_defects_gives_no_finding(make_audit, drawn):
    audit = make_audit(drawn, AuditThresholds(fail_on=list(FINDINGS)))
    assert audit.findings.empty
    assert audit.failing == []


def test_only_found_kinds_in_fail_on_fail(defective_audit):
    assert defective_audit.failing == ["conflicting_grades", "unreadable"]


def test_copy_in_another_data_set_is_found_with_its_prefix(make_audit, drawn, defective):
    audit = make_audit(defective, external=[drawn])
    across = audit.findings[audit.findings["finding"] == "across_datasets"]
    assert set(across["dataset"]) | set(across["other_dataset"]) == {"defective", "demo"}
    ids = set(across["image_id"]) | set(across["other_image_id"])
    first = f"demo/{drawn.read().manifest['image_id'][3]}"
    assert {"p03", first} <= ids
    # Splits and patients of two data sets are unrelated.
    assert set(audit.findings.loc[audit.findings["finding"] == "across_splits", "dataset"]) == {"defective"}


def test_unlabelled_data_set_gives_no_missing_labels(make_audit, drawn, defective):
    audit = make_audit(drawn, unlabelled=[defective])
    assert "label_missing" not in set(audit.findings["finding"])
    assert {"unreadable", "near_duplicate"} <= set(audit.findings["finding"])


def test_written_tables_have_the_documented_columns(defective_audit, tmp_path):
    write_audit(defective_audit, tmp_path / "audit")
    findings = pd.read_csv(tmp_path / "audit" / "findings.csv")
    assert list(findings) == list(COLUMNS)
    assert set(findings["finding"]) <= set(FINDINGS)
    assert (findings["severity"] == [FINDINGS[name].severity for name in findings["finding"]]).all()
    pairs = pd.read_csv(tmp_path / "audit" / "pairs.csv")
    assert list(pairs) == list(PAIR_COLUMNS)
    of_pairs = findings[findings["other_image_id"].notna() & (findings["finding"] != "patient_across_splits")]
    assert sorted(" ".join(pairs["findings"]).split()) == sorted(of_pairs["finding"])
    quality = pd.read_csv(tmp_path / "audit" / "quality.csv")
    assert quality["image_id"].tolist() == defective_audit.manifest["image_id"].tolist()


def test_facts_are_flat_and_count_the_findings(defective_audit, tmp_path):
    write_audit(defective_audit, tmp_path / "audit")
    facts = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert all(isinstance(value, str | int | float | bool) for value in facts.values())
    assert facts["status"] == "failed"
    assert facts["data/defective/sha256"] == defective_audit.stores[0].sha256
    for kind in FINDINGS:
        assert facts[f"findings/{kind}"] == sum(found == kind for found, _, _ in DEFECTS)


def test_audit_is_reproducible(make_audit, defective, defective_audit, tmp_path):
    again = make_audit(defective, defective_audit.settings)
    for number, audit in enumerate((defective_audit, again)):
        write_audit(audit, tmp_path / str(number))
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / number).iterdir()} for number in "01"
    )
    assert len(first) == 5
    assert first == second


def test_write_replaces_only_an_earlier_audit(defective_audit, tmp_path):
    folder = tmp_path / "audit"
    write_audit(defective_audit, folder)
    (folder / "left.over").touch()
    write_audit(defective_audit, folder)
    assert not (folder / "left.over").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["audit"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    with pytest.raises(ConfigError, match="other files than an audit"):
        write_audit(defective_audit, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter1.tex").exists()


def test_failed_write_leaves_no_files(defective_audit, tmp_path, monkeypatch):
    def fail(audit):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("drgrade.auditing.html_report.render", fail)
    with pytest.raises(DataError, match="No space left on device"):
        write_audit(defective_audit, tmp_path / "audit")
    assert list(tmp_path.iterdir()) == []


def test_pixels_follow_the_rows_of_all_data_sets(make_audit, drawn, defective):
    audit = make_audit(defective, external=[drawn])
    for row in (0, len(audit.stores[0]) - 1, len(audit.stores[0]), len(audit.manifest) - 1):
        name = audit.manifest["image_id"][row].removeprefix("demo/")
        store = audit.stores[int(audit.manifest["dataset"][row] == "demo")]
        number = store.manifest["image_id"].tolist().index(name)
        assert np.array_equal(audit.pixels(row), store.images[number])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fail_on=[identcal]", r"fail_on=identcal is not allowed; did you mean identical\?"),
        ("fail_on=identical", "fail_on=identical is not allowed"),
        ("fail_on=null", "fail_on=null is not allowed: list of"),
        ("audit.folds=1", "audit.folds=1 is not allowed: whole number ≥ 2"),
        ("audit.permutations=2.5", "audit.permutations=2.5 is not allowed: whole number ≥ 19"),
        ("audit.dark_below=dim", "audit.dark_below=dim is not allowed: number ≥ 0"),
    ],
)
def test_invalid_settings_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        AuditSettings.compose(override)
