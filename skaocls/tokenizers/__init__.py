"""Tokenizers: scikit-learn transformers between data and grids of discrete tokens.

A tokenizer is fitted with ``fit(X)``, turns data into integer codes of shape
``(n_samples, rows, cols)`` with ``transform``, codes into data with ``inverse_transform``, and
states the size of its codebook as ``n_codes_``.
"""

from skaocls.tokenizers.feature import FeatureTokenizer
from skaocls.tokenizers.patch import PatchTokenizer
from skaocls.tokenizers.precomputed import PrecomputedTokenizer
from skaocls.tokenizers.quantile import QuantileTokenizer
from skaocls.tokenizers.vq import LlamaGenTokenizer, MaskGITTokenizer

__all__ = [
    "FeatureTokenizer",
    "LlamaGenTokenizer",
    "MaskGITTokenizer",
    "PatchTokenizer",
    "PrecomputedTokenizer",
    "QuantileTokenizer",
]
