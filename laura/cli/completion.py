"""What a shell offers for a recipe, a study, an adapter or a base, from what was typed so far.

Commands, options and choices typer offers by itself. Nothing heavy: a shell asks at every key.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def recipes(incomplete: str) -> list[str]:
    """Names of shipped recipes, and YAML files."""
    from laura.recipe.shipped import shipped_recipes

    return [*_begun(shipped_recipes(), incomplete), *_places(incomplete, "*.yaml")]


def studies(incomplete: str) -> list[str]:
    """Folders that `laura compare` wrote."""
    found = (_places(incomplete, name, folder=True) for name in ("study.json", "series.json"))
    return sorted({place for places in found for place in places})


def adapters(incomplete: str) -> list[str]:
    """Folders of adapters in PEFT's format."""
    return _places(incomplete, "adapter_config.json", folder=True)


def bases(incomplete: str) -> list[str]:
    """Names of the registry, and folders of models."""
    from laura.models.registry import MODELS

    names = _begun(MODELS, incomplete)
    return [*names, *_places(incomplete, "config.json", folder=True)]


def _begun(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def _places(incomplete: str, pattern: str, folder: bool = False) -> list[str]:
    """Files, or their folders, up to two folders below the one that was typed."""
    above = Path(incomplete.rpartition("/")[0] or ("/" if incomplete.startswith("/") else "."))
    found = [path for depth in ("", "*/", "*/*/") for path in above.glob(depth + pattern)]
    return sorted(_begun({str(path.parent if folder else path) for path in found}, incomplete))


# By metavar, which is one for whatever is the same.
OFFERED = {
    "RECIPE": recipes,
    "STUDY": studies,
    "STUDY...": studies,
    "ADAPTER": adapters,
    "[NAME=]DIR": adapters,
    "BASE": bases,
    "MODEL": bases,
}
