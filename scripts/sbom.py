"""Write a software bill of materials: what an installed Laura is made of, for scanners.

CycloneDX 1.6 (https://cyclonedx.org/docs/1.6/json/): every package that Laura, with the extras
that are named, reaches in this environment, with version, licence, package URL, and what needs
what. The distribution itself need not be installed from an index: a checkout will do.

Use: python scripts/sbom.py [EXTRA ...] > sbom.json
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from typing import Any

from write_constraints import installed_closure

ROOT = "laura-lab"


def bill(extras: list[str]) -> dict[str, Any]:
    """The bill of Laura with extras; PackageNotFoundError names what is not installed."""
    found = installed_closure([f"{ROOT}[{','.join(extras)}]" if extras else ROOT])
    parts = {name: component(name, version) for name, (version, _) in found.items()}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {**parts.pop(ROOT), "type": "application"}},
        "components": [parts[name] for name in sorted(parts)],
        "dependencies": [
            {"ref": reference(name, version), "dependsOn": sorted(
                reference(one, found[one][0]) for one in below
            )}
            for name, (version, below) in sorted(found.items())
        ],
    }  # fmt: skip


def component(name: str, version: str) -> dict[str, Any]:
    """A package as CycloneDX tells it."""
    facts = metadata.metadata(name).json
    purl = reference(name, version)
    told = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    if expression := facts.get("license_expression"):
        return {**told, "licenses": [{"expression": expression}]}
    # Older packages tell it in words of their own, some of them the whole text.
    kinds = [one.rpartition(" :: ")[2] for one in facts.get("classifier", ())
             if one.startswith("License :: ")]  # fmt: skip
    words = kinds or str(facts.get("license", "")).splitlines()[:1]
    return {**told, "licenses": [{"license": {"name": one}} for one in words if one]}


def reference(name: str, version: str) -> str:
    """A package's URL (purl)."""
    return f"pkg:pypi/{name}@{version.replace('+', '%2B')}"


if __name__ == "__main__":
    print(json.dumps(bill(sys.argv[1:]), indent=1))
