"""Plots of a fitted classifier, in the style of scikit-learn's displays.

``from_estimator`` computes and plots. A display that is created from given values plots them with
``plot``. matplotlib (the extra ``plot``) is only imported when something is plotted.
"""

from skaocls.displays.evidence_maps import EvidenceDisplay
from skaocls.displays.html_report import write_report
from skaocls.displays.order_curve import OrderCurveDisplay
from skaocls.displays.reconstructions import ReconstructionDisplay

__all__ = ["EvidenceDisplay", "OrderCurveDisplay", "ReconstructionDisplay", "write_report"]
