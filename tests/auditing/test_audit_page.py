"""Tests of the HTML page of an audit."""

import base64
import re
from dataclasses import replace

import cv2
import numpy as np
import pandas as pd
import pytest
from defective_folder import HOSTILE
from html_page import Page

from drgrade.auditing.findings import FINDINGS
from drgrade.auditing.html_report import render
from drgrade.auditing.shortcut import probe
from drgrade.settings import AuditThresholds


@pytest.fixture(scope="module")
def page(defective_audit):
    return Page(render(defective_audit))


def test_names_are_escaped(page):
    assert "script" not in page.tags
    assert HOSTILE in page.text


def test_markup_in_labels_is_escaped(defective_audit):
    findings = defective_audit.findings.copy()
    findings["detail"] = "</td><img src=x onerror=alert(1)>"
    page = Page(render(replace(defective_audit, findings=findings)))
    assert all(value.startswith("data:image/jpeg;base64,") for value in page.images)
    assert not any(name.startswith("on") for _, name, _ in page.attributes)


def test_page_loads_no_external_resources(defective_audit, page):
    html = render(defective_audit)
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"base64,[^\"]*", "", html))
    assert not {"script", "link", "iframe"} & set(page.tags)


def test_pairs_show_the_pixels_of_both_photographs(defective_audit, page):
    assert {"copy", "p00", "p01_again", "p02_mirrored"} <= set(page.text)
    for uri, row in zip(
        page.images, [defective_audit.pairs["first"][0], defective_audit.pairs["second"][0]], strict=False
    ):
        shown = cv2.imdecode(
            np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8), cv2.IMREAD_COLOR
        )
        difference = np.abs(shown[..., ::-1].astype(int) - defective_audit.pixels(row))
        assert difference.mean() < 4


def test_page_names_every_kind_of_finding(defective_audit, page):
    for kind in set(defective_audit.findings["finding"]):
        assert kind in page.text


def test_page_names_the_row_of_the_label_file(page):
    assert "the file is not there: gone.jpg" in page.text
    assert any(re.fullmatch(r"labels\.csv:\d+", text) for text in page.text)


def test_truncated_pairs_are_counted(defective_audit):
    capped = replace(defective_audit, settings=AuditThresholds(pairs_on_page=1))
    page = Page(render(capped))
    assert any(text.startswith("1 of 3; all are in") for text in page.text)
    assert "p02_mirrored" not in page.text


def test_page_size_is_bounded(defective_audit):
    many = pd.concat([defective_audit.findings] * 5000, ignore_index=True)
    pairs = pd.concat([defective_audit.pairs] * 5000, ignore_index=True)
    assert len(render(replace(defective_audit, findings=many, pairs=pairs))) < 5_000_000


def test_page_of_a_clean_data_set_reports_no_errors(make_audit, drawn):
    text = Page(render(make_audit(drawn))).text
    assert any("Passed: no errors or warnings" in line for line in text)
    assert "No copies were found." in text


def test_page_reports_that_copies_were_not_searched_for(make_audit, drawn):
    text = Page(render(replace(make_audit(drawn, find_duplicates=False), searched=False))).text
    assert "No copies were found." not in text
    assert any("not searched for" in line for line in text)


def test_page_contains_the_chart_of_the_probe(defective_audit):
    rng = np.random.default_rng(0)
    grade = rng.integers(0, 5, 120)
    manifest = pd.DataFrame(
        {"image_id": [f"i{i}" for i in range(120)], "patient_id": pd.NA, "dataset": "made_up", "grade": grade}
    ).assign(
        width=1000 + 500 * grade, height=1000, file_size=1, border=0.2, brightness=rng.uniform(0, 9, 120)
    )
    found = probe(manifest.astype({"grade": "Int64"}), AuditThresholds(permutations=19, resamples=100))
    html = render(replace(defective_audit, probes=[found]))
    page = Page(html)
    assert found.sentence + "." in page.text
    widths = [float(value) for tag, name, value in page.attributes if (tag, name) == ("rect", "width")]
    assert len(widths) == 1 + 7  # chance, all features, each feature
    assert widths[1] == pytest.approx(300 * found.qwk, abs=0.5)
    assert "does not vary" in page.text


def test_every_kind_of_finding_has_a_title_and_a_meaning():
    for kind in FINDINGS.values():
        assert kind.title
        assert kind.meaning.endswith(".")
