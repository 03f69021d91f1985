"""Generative image classification with any-order autoregressive models."""

from skaocls.classifier import AnyOrderARClassifier
from skaocls.prior import AnyOrderPrior
from skaocls.tokenizers import (
    LlamaGenTokenizer,
    MaskGITTokenizer,
    PatchTokenizer,
    QuantileTokenizer,
)

__version__ = "0.1.0"

__all__ = [
    "AnyOrderARClassifier",
    "AnyOrderPrior",
    "LlamaGenTokenizer",
    "MaskGITTokenizer",
    "PatchTokenizer",
    "QuantileTokenizer",
]
