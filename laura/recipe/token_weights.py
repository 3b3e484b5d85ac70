"""The table of token weights: names that an arm's `token_weight` may have, and their files.

A weight says how much a token counts in the gradient, by what the model thinks of it. One from
elsewhere is a file in any package and one line, before a recipe is read:

    TOKEN_WEIGHTS["mine"] = "my_package.my_weight"

The file has one function, see `laura.training.token_weights`. No torch here.
"""

from __future__ import annotations

from laura.recipe.tasks import allowed_names

TOKEN_WEIGHTS = {
    "dft": "laura.training.token_weights.dft",
    "eaft": "laura.training.token_weights.eaft",
}


def check_token_weight(name: str) -> str:
    """The name as it came, if the table has it.

    Raises:
        ValueError: with what is allowed, in words.
    """
    if name in TOKEN_WEIGHTS:
        return name
    allowed = allowed_names(name, TOKEN_WEIGHTS)
    raise ValueError(f"is no token weight, came {name[:60]!r}; {allowed}, or null")


def token_weight_schema() -> dict[str, object]:
    """JSON Schema of the name."""
    return {"enum": list(TOKEN_WEIGHTS), "type": "string"}
