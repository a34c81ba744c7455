"""Encoders and heads, in plain torch."""

from drgrade.models.cbam import CBAM, ChannelAttention, SpatialAttention
from drgrade.models.deep_learner import DeepLearner, ResidualAttentionBlock
from drgrade.models.encoder import Encoder, TimmEncoder
from drgrade.models.fpn import FeaturePyramid
from drgrade.models.heads import CornHead, CumulativeHead, Head, RegressionHead, SoftmaxHead
from drgrade.models.msssl import MsSSL

__all__ = [
    "CBAM",
    "ChannelAttention",
    "CornHead",
    "CumulativeHead",
    "DeepLearner",
    "Encoder",
    "FeaturePyramid",
    "Head",
    "MsSSL",
    "RegressionHead",
    "ResidualAttentionBlock",
    "SoftmaxHead",
    "SpatialAttention",
    "TimmEncoder",
]
