"""From tokens to class posteriors.

``orders`` draws token orders. ``engine`` and ``heads`` run the prior's forward pass, ``exhaustive``
and ``early_stopping`` (with ``tiles``) score classes. ``aggregation`` and ``calibration`` turn
scores into posteriors. ``evidence`` attributes scores to tokens, and ``sampling`` draws tokens.
"""
