"""Fixtures: a small data set with every kind of defect, and one without defects."""

from collections.abc import Callable

import numpy as np
import pytest
from defective_folder import make_defective
from PIL import Image

from drgrade.auditing.audit import Audit, audit
from drgrade.data.photographs import Collection
from drgrade.data.sources.demo import Demo
from drgrade.data.sources.folder import Folder
from drgrade.settings import AuditThresholds

SIZE = 96


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Demo:
    """40 photographs of 192 px."""
    return Demo(tmp_path_factory.mktemp("drawn"), count=40, size=192, workers=1)


@pytest.fixture(scope="session")
def drawn_pixels(drawn) -> list[np.ndarray]:
    """Pixels of the drawn photographs, RGB uint8 (H, W, 3)."""
    return [np.array(Image.open(drawn.root / path).convert("RGB")) for path in drawn.read().manifest["path"]]


@pytest.fixture(scope="session")
def defective(drawn, tmp_path_factory) -> Folder:
    """The data set of :mod:`defective_folder`."""
    return make_defective(drawn, tmp_path_factory.mktemp("defective"))


@pytest.fixture(scope="session")
def make_audit(tmp_path_factory) -> Callable[..., Audit]:
    """``make_audit(source, settings, **options)``: audit at 96 px, in one store folder."""
    stores = tmp_path_factory.mktemp("audit_stores")

    def make(source, settings: AuditThresholds | None = None, **options) -> Audit:
        return audit(Collection(source, stores, SIZE, workers=1, **options), settings)

    return make


@pytest.fixture(scope="session")
def defective_audit(make_audit, defective) -> Audit:
    """The audit of the data set with defects."""
    return make_audit(
        defective, AuditThresholds(fail_on=["conflicting_grades", "unreadable", "across_datasets"])
    )
