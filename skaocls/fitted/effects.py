"""Parameters that were set but have no effect beside the others."""

from collections.abc import Iterator, Mapping
from typing import Any

from skaocls.fitted.initialization import is_new
from skaocls.priors.interface import Prior

OF_SEARCH = ("racing_error", "racing_screen")
OF_TRAINING = (
    "filename",
    "revision",
    "finetune",
    "finetune_dropout",
    "new_classes",
    "lora_rank",
    "lora_alpha",
    "validation_fraction",
)


def without_effect(
    names: tuple[str, ...], params: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Iterator[str]:
    """Yield, for each parameter of these names that does nothing, a sentence that says so and why.

    Parameters
    ----------
    names : tuple of str
        Of `OF_SEARCH` and `OF_TRAINING`.
    params, defaults : dict
        The classifier's; a parameter at its default is not meant.
    """
    racing = params["search"] == "racing", 'search="racing"'
    raced = params["search"] != "exhaustive", 'search="racing" or "auto"'
    given = not is_new(params["prior"])
    tuned = given, "a given prior, or partial_fit with new classes: a new prior is trained in full"
    lora = given and params["finetune"] == "lora", 'a given prior and finetune="lora"'
    named = given and not isinstance(params["prior"], Prior), "a prior that names weights"
    holds_out = params["early_stopping"] or params["temperature"] == "auto"
    needs = {
        "racing_error": raced,
        "racing_screen": racing,
        "filename": named,
        "revision": named,
        "finetune": tuned,
        "finetune_dropout": tuned,
        "new_classes": tuned,
        "lora_rank": lora,
        "lora_alpha": lora,
        "validation_fraction": (holds_out, 'early_stopping=True or temperature="auto"'),
    }
    for name in names:
        met, need = needs[name]
        if params[name] != defaults[name] and not met:
            yield f"{name}={params[name]!r} has no effect: it needs {need}."
