"""Code that computes class posteriors from tokens.

``orders`` draws token orders. ``engine`` and ``shared_trunk_engine`` compute the forward pass of a
prior. ``exhaustive`` scores all classes. ``early_stopping`` stops scoring unlikely classes early,
with the functions of ``token_scores``. ``aggregation`` and ``calibration`` turn scores into
posteriors. ``evidence`` attributes scores to tokens. ``token_sampling`` draws new tokens.
"""
