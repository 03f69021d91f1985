"""Tokenizers: scikit-learn transformers between data and grids of discrete tokens.

A tokenizer learns a codebook by ``fit(X)``, maps data to integer codes of shape
``(n_samples, rows, cols)`` by ``transform``, and codes to data by ``inverse_transform``. Its fitted
attributes are ``grid_``, the rows and columns of tokens, and ``n_codes_``, the codebook's size.
"""

from skaocls.tokenizers.feature_map import FeatureTokenizer
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
