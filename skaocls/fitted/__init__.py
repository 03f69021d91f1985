"""Fitted models: training, scoring, generation and saving. No module here uses the estimator."""

from skaocls.fitted.model import FittedModel

__all__ = ["FittedModel"]
