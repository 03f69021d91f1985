"""From tokens to class posteriors.

``orders`` draws token orders. ``engine`` and ``heads`` run the prior's forward pass. ``exhaustive``
and ``early_stopping`` score classes, the latter with ``tiles``. ``aggregation`` and ``calibration``
turn scores into posteriors. ``evidence`` attributes scores to tokens. ``sampling`` draws tokens.
"""
