"""Training, scoring, generation and saving of fitted models, independent of the estimator."""

from skaocls.fitted.model import FittedModel

__all__ = ["FittedModel"]
