"""Drawn fundus photographs: the demo data set needs no download.

An eye is described in *anatomical* coordinates (:mod:`.view`), grown and painted by :mod:`.vessels`,
:mod:`.retina` and :mod:`.lesions`, and photographed by :mod:`.camera`. Who has which grade: :mod:`.plan`.
"""

from drgrade.data.fundus_art.compose import Drawing, draw_photograph
from drgrade.data.fundus_art.lesions import Lesion
from drgrade.data.fundus_art.plan import Photograph, plan_photographs

ART_VERSION = 1
"""Goes into the name of the drawn folder. Raise it with any change that alters a pixel or a grade."""

__all__ = ["ART_VERSION", "Drawing", "Lesion", "Photograph", "draw_photograph", "plan_photographs"]
