"""Priors: networks that know log p(tokens | class, order), and their weights."""

from skaocls.priors.transformer import AnyOrderPrior

__all__ = ["AnyOrderPrior"]
