"""What is wrong with photographs and labels, before a model is trained on them.

:func:`audit` looks at a :class:`~drgrade.data.collection.Collection`: copies (:mod:`.pairs`), files and
labels (:mod:`.files`), what the photographs show (:mod:`.quality`), and how far the grade can be told without
looking at the retina (:mod:`.shortcut`). :mod:`.findings` has the words for what is found, :mod:`.writing`
writes it down, :mod:`.page` for those who would rather look. The reasons are in ``docs/audit.md``.
"""

from drgrade.audit.auditing import Audit, audit
from drgrade.audit.findings import FINDINGS
from drgrade.audit.settings import Settings
from drgrade.audit.writing import write_audit

__all__ = ["FINDINGS", "Audit", "Settings", "audit", "write_audit"]
