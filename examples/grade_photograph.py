"""Grade a photograph with a file of `drgrade export`, without drgrade; not a medical device."""

import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = session.get_modelmeta().custom_metadata_map
assert about["illumination"] == "none", "this script handles illumination=none only; use drgrade prepare"
image = ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")
light = np.asarray(image).max(axis=2)  # the disc: above a fifth of the highest brightness
bright = light > light.min() + 0.2 * (np.percentile(light, 99.5) - light.min())
(top, bottom), (left, right) = (np.flatnonzero(bright.mean(axis=axis) > 0.02)[[0, -1]] for axis in (1, 0))
x, y, radius = (left + right + 1) / 2, (top + bottom + 1) / 2, max(right - left + 1, bottom - top + 1) / 2
square = image.crop([round(edge) for edge in (x - radius, y - radius, x + radius, y + radius)])
crop = np.asarray(square.resize([int(about["image_size"])] * 2, Image.Resampling.BOX))
found = session.run(None, {"photographs": crop[None]})
print({output.name: value[0].tolist() for output, value in zip(session.get_outputs(), found, strict=True)})
