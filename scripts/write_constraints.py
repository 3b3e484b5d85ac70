"""Write constraints.txt: the versions, direct and indirect, that this environment was tested with.

torch stays a range. Its builds carry local labels (`+cpu`, `+cu130`) and its
index differs from machine to machine, so a pin would fail where a range works.

Use: make lock
"""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
RANGES = {"torch": "torch>=2.9,<3"}
HEADER = """\
# The versions Laura is tested with; made by `make lock`, used by `make` when it installs.
# torch stays a range: its builds carry local labels and come from different indexes.
"""


def main() -> None:
    """Write the file and say how many packages it names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"]]
    for name, extra in project["optional-dependencies"].items():
        # vLLM pins its own torch, lives in an environment of its own, and is tested from there;
        # trackio would bring uvloop, which a server takes up where it finds it.
        if name not in ("vllm", "trackio"):
            wanted += [line for line in extra if Requirement(line).name != project["name"]]
    pins = {name: f"{name}=={found[0]}" for name, found in installed_closure(wanted).items()}
    pins |= RANGES
    lines = "".join(f"{pins[name]}\n" for name in sorted(pins))
    (ROOT / "constraints.txt").write_text(HEADER + lines, encoding="utf-8")
    print(f"constraints.txt: {len(pins)} packages")


def installed_closure(requirements: list[str]) -> dict[str, tuple[str, set[str]]]:
    """What the requirements reach, by canonical name: its version, and what it needs itself."""
    reached: dict[str, tuple[str, set[str]]] = {}
    todo = [Requirement(line) for line in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        package = metadata.distribution(name)
        _, below = reached.setdefault(name, (package.version, set()))
        for line in package.requires or []:
            needed = Requirement(line)
            environments = [{"extra": extra} for extra in ("", *requirement.extras)]
            if needed.marker is None or any(needed.marker.evaluate(e) for e in environments):
                todo.append(needed)
                below.add(canonicalize_name(needed.name))
    return reached


if __name__ == "__main__":
    main()
