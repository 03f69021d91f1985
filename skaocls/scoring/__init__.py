"""From tokens to posteriors: what a prior says of tokens, and what follows for their class.

``orders`` draws orders, ``engine`` reads tokens along them, ``exhaustive`` and ``racing`` (with
``screening``) score classes, ``aggregation`` and ``calibration`` make posteriors of that,
``evidence`` takes scores apart token by token, ``sampling`` draws tokens.
"""
