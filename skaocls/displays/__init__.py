"""Pictures of a fitted classifier, in the manner of scikit-learn's displays.

``from_estimator`` computes and draws, ``from_predictions`` draws what is computed already, and
``plot`` draws again. matplotlib (the extra ``plot``) is imported when something is drawn.
"""

from skaocls.displays.evidence_maps import EvidenceDisplay
from skaocls.displays.order_curve import OrderCurveDisplay
from skaocls.displays.reconstructions import ReconstructionDisplay
from skaocls.displays.report import write_report

__all__ = ["EvidenceDisplay", "OrderCurveDisplay", "ReconstructionDisplay", "write_report"]
