"""From tokens to class posteriors.

``orders`` draws token orders. ``engine`` and ``heads`` run the prior's forward pass, ``exhaustive``
and ``early_stopping`` score classes with them, and ``aggregation`` and ``calibration`` turn scores
into posteriors. ``evidence`` attributes scores to tokens, and ``sampling`` draws tokens.
"""
