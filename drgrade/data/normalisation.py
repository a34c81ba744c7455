"""What the published weights expect of pixels."""

MEAN = (0.485, 0.456, 0.406)
"""ImageNet's channel means (RGB, of values in 0..1), which timm's weights expect."""

STD = (0.229, 0.224, 0.225)
"""ImageNet's channel standard deviations."""
