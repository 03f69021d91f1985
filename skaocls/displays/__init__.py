"""Plots of a fitted classifier, in the style of scikit-learn's displays.

``from_estimator`` computes values and plots them. To plot values that you already have, create a
display with these values and call ``plot``. matplotlib (the extra ``plot``) is imported only when
something is plotted.
"""

from skaocls.displays.evidence_maps import EvidenceDisplay
from skaocls.displays.html_report import write_report
from skaocls.displays.order_curve import OrderCurveDisplay
from skaocls.displays.reconstructions import ReconstructionDisplay

__all__ = ["EvidenceDisplay", "OrderCurveDisplay", "ReconstructionDisplay", "write_report"]
