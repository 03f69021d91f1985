"""Training a prior: ``loop`` is the recipe, ``finetuning`` says what is trained of a given one."""
