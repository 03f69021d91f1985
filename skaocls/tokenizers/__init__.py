"""Tokenizers: scikit-learn transformers between data and grids of discrete tokens.

``fit(X)`` learns a codebook, ``transform`` maps data to integer codes of shape
``(n_samples, rows, cols)``, and ``inverse_transform`` maps codes to data. Every fitted tokenizer
has the attributes ``grid_`` (rows and columns of tokens) and ``n_codes_`` (size of the codebook).
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
