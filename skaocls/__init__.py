"""Generative image classification with any-order autoregressive models."""

from skaocls.classifier import AnyOrderARClassifier
from skaocls.fitted.token_dataset import tokenize_dataset
from skaocls.images.folders import load_image_folder
from skaocls.parameter_objects import FineTuning, PretrainedWeights
from skaocls.priors.shared_trunk import SharedTrunkPrior
from skaocls.priors.transformer import AnyOrderPrior
from skaocls.tokenizers import (
    FeatureTokenizer,
    LlamaGenTokenizer,
    MaskGITTokenizer,
    PatchTokenizer,
    PrecomputedTokenizer,
    QuantileTokenizer,
)
from skaocls.tokenizers.contract import check_tokenizer
from skaocls.tokenizers.token_files import load_tokens
from skaocls.version import __version__

__all__ = [
    "AnyOrderARClassifier",
    "AnyOrderPrior",
    "FeatureTokenizer",
    "FineTuning",
    "LlamaGenTokenizer",
    "MaskGITTokenizer",
    "PatchTokenizer",
    "PrecomputedTokenizer",
    "PretrainedWeights",
    "QuantileTokenizer",
    "SharedTrunkPrior",
    "__version__",
    "check_tokenizer",
    "load_image_folder",
    "load_tokens",
    "tokenize_dataset",
]
