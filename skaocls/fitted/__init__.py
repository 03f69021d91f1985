"""What `fit` learns, as one value, and what can be done with it; none of this knows the estimator.

``model`` is that value, ``learning`` makes and extends it, ``answers`` scores and explains with it,
``drawing`` draws images, ``saving`` and ``published`` bring it in and out.
"""

from skaocls.fitted.model import FittedModel

__all__ = ["FittedModel"]
