"""A YAML 1.2 file as plain data with the line of every key, and data written as YAML.

`010` is ten, `1:30` and `no` are text, `1e-4` is a number and `1e6` a whole one. A file that asks
to be read as YAML 1.1, where they are others, is refused.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.constructor import ConstructorError
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver

from laura.recipe.sections import short
from laura.results.errors import Fault, RecipeError
from laura.results.inputs import MOST_RECIPE_BYTES, read_bounded

LARGEST_WHOLE_NUMBER = 10**15
MOST_VALUES = 10_000
MOST_DEPTH = 20
RECIPE_HINT = "give the path of a YAML recipe, such as recipes/smollm2-gsm8k.yaml"
SOURCE_KEYS = {"train", "validation", "test", "source_text"}
Made = TypeVar("Made")
_TAG = "tag:yaml.org,2002:"
_NAMES = {"int": "a whole number", "float": "a number", "bool": "true or false"}
# What ruamel.yaml raises for tagged nonsense, such as `!!bool maybe`, beside its own errors.
_NONSENSE = (
    ValueError, LookupError, AttributeError, TypeError, RecursionError, OverflowError,
)  # fmt: skip


class _BoundedComposer(Composer):
    """Stops at the first value too many, before the rest is read."""

    most_values = MOST_VALUES
    count = 0

    def compose_document(self) -> Any:
        start = self.parser.peek_event()
        if start.version not in (None, (1, 2)):
            version = ".".join(map(str, start.version))
            problem = f"%YAML {version} would change what numbers mean (010, 1:30); leave it out"
            raise _error(problem, start)
        return super().compose_document()

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.count += 1
        if self.depth >= MOST_DEPTH:
            raise _error(f"nested more than {MOST_DEPTH} deep", self.parser.peek_event())
        if self.count > self.most_values:
            problem = f"more than {self.most_values:,} values; no recipe needs so many"
            raise _error(problem, self.parser.peek_event())
        return super().compose_node(parent, index)


def _error(problem: str, place: Any) -> ConstructorError:
    return ConstructorError(None, None, problem, place.start_mark)


def _problem(error: Exception) -> str:
    return getattr(error, "problem", None) or str(error) or type(error).__name__


@dataclass
class YamlDocument:
    """What was read from a file, and where it stood.

    Attributes:
        source: The file's name, for messages.
        data: Its sections.
        lines: Line of each key and list item by its dotted path, counted from 1.
        faults: What is wrong so far.
        overridden: Dotted paths whose values no longer come from the file.
    """

    source: str
    data: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    overridden: set[str] = field(default_factory=set)

    @classmethod
    def parse(cls, text: str, source: str, most_values: int = MOST_VALUES) -> YamlDocument:
        """What stands in a YAML text.

        Raises:
            RecipeError: it is not YAML, holds no sections, or more than `most_values` values.
        """
        reader = _NodeReader(most_values)
        try:
            data = reader.read(text)
        except (YAMLError, *_NONSENSE) as error:
            mark = getattr(error, "problem_mark", None)
            line = mark.line + 1 if mark else None
            problem = f"is not YAML: {_problem(error)}"
            raise RecipeError([Fault("file", problem, line)], source) from error
        if not isinstance(data, dict):
            kind = "nothing" if data is None else type(data).__name__
            fault = Fault("file", f"must hold sections (key: value), came {kind}")
            raise RecipeError([fault], source)
        return cls(source, data, reader.lines, reader.faults)

    @classmethod
    def read(cls, path: str | Path, hint: str = RECIPE_HINT) -> YamlDocument:
        """What stands in a YAML file; `hint` says what to give instead of one that is none.

        Raises:
            RecipeError: as `parse`, or the file cannot be read.
        """
        try:
            text = read_bounded(path, MOST_RECIPE_BYTES).decode("utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            fault = Fault("file", f"cannot be read ({reason}); {hint}")
            raise RecipeError([fault], str(path)) from error
        return cls.parse(text, str(path))

    def override(self, overrides: Iterable[str]) -> None:
        """Change values as `section.key=value` says; what cannot be changed becomes a fault."""
        for override in overrides:
            key, separator, text = override.partition("=")
            parts = key.strip().split(".")
            if not separator or not all(parts) or len(parts) > MOST_DEPTH:
                problem = f"--set takes section.key=value, came {short(override)}"
                self.faults.append(Fault("--set", problem))
                continue
            try:
                value = _NodeReader(MOST_VALUES).read(text)
            except (YAMLError, *_NONSENSE) as error:
                problem = f"the value {short(text)} is not YAML: {_problem(error)}"
                self.faults.append(Fault(f"--set {key}", problem))
                continue
            if _put(self.data, parts, value):
                self.overridden.add(".".join(parts))
            else:
                problem = "leads through a value that is not a section"
                self.faults.append(Fault(f"--set {key}", problem))

    def placed(self, faults: Iterable[Fault]) -> list[Fault]:
        """Faults with their lines, or with the remark that --set brought them."""
        return [self._placed(fault) for fault in faults]

    def _placed(self, fault: Fault) -> Fault:
        path = fault.path
        while path not in self.lines and path not in self.overridden and "." in path:
            path = path.rpartition(".")[0]
        above = any(other.startswith(f"{fault.path}.") for other in self.overridden)
        if path in self.overridden or (above and fault.path not in self.lines):
            return replace(fault, problem=f"{fault.problem} (given by --set)")
        return replace(fault, line=self.lines.get(path))

    def accepted(self, made: Made | None, found: Iterable[Fault]) -> Made:
        """What was made of the data, if nothing is wrong with them.

        Raises:
            RecipeError: the faults so far and those that were found, with their lines.
        """
        faults = [*self.faults, *self.placed(found)]
        if faults or made is None:
            raise RecipeError(faults, self.source)
        return made


class _NodeReader:
    """Plain values out of the nodes of a YAML text."""

    def __init__(self, most_values: int) -> None:
        self.lines: dict[str, int] = {}
        self.faults: list[Fault] = []
        self.yaml = YAML(typ="safe", pure=True)
        self.yaml.Composer = _BoundedComposer
        self.yaml.composer.warn_double_anchors = False
        self.most_values = self.yaml.composer.most_values = most_values
        self.count = 0

    def read(self, text: str) -> Any:
        """The value of a whole text; None for an empty one."""
        node = self.yaml.compose(text)
        return None if node is None else self._value(node, "")

    def _value(self, node: Node, path: str, depth: int = 0) -> Any:
        # Aliases can make a few lines stand for billions of values, or for themselves.
        self.count += 1
        if self.count > self.most_values or depth > MOST_DEPTH:
            problem = f"aliases stand for more than {self.most_values:,} values, or for themselves"
            raise _error(problem, node)
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        kind = "map" if isinstance(node, MappingNode) else "seq"
        if node.tag != _TAG + kind:
            raise _error(f"the tag {node.tag} has no meaning here", node)
        if isinstance(node, MappingNode):
            return self._mapping(node, path, depth + 1)
        found = []
        for index, below in enumerate(node.value):
            here = f"{path}.{index}"
            self.lines[here] = below.start_mark.line + 1
            found.append(self._value(below, here, depth + 1))
        return found

    def _scalar(self, node: ScalarNode) -> Any:
        try:
            value = self.yaml.constructor.construct_object(node)
        except _NONSENSE as error:
            name = str(node.tag).removeprefix(_TAG)
            problem = f"{short(node.value)} is not {_NAMES.get(name, f'a {name}')}"
            raise _error(problem, node) from error
        if isinstance(value, int) and abs(value) > LARGEST_WHOLE_NUMBER:
            raise _error(f"{short(node.value)} is too large a number", node)
        if isinstance(value, float) and "e" in node.value.lower() and value.is_integer():
            return int(value) if abs(value) <= LARGEST_WHOLE_NUMBER else value
        return value

    def _mapping(self, node: MappingNode, path: str, depth: int) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for key, below in node.value:
            if key.tag == f"{_TAG}merge":
                nodes = below.value if isinstance(below, SequenceNode) else [below]
                for one in reversed(nodes):
                    if not isinstance(one, MappingNode):
                        raise _error("<< takes a section or a list of sections", one)
                    found |= self._value(one, path, depth)
        seen: set[str] = set()
        for key, below in node.value:
            if not isinstance(key, ScalarNode):
                raise _error("a key must be a single value", key)
            if key.tag == f"{_TAG}merge":
                continue
            name = self._scalar(key)
            here = f"{path}.{name}" if path else str(name)
            self.lines[here] = key.start_mark.line + 1
            if here in seen:
                problem = "is given twice; keep one of them"
                self.faults.append(Fault(here, problem, self.lines[here]))
            seen.add(here)
            found[name] = self._value(below, here, depth)
        return found


def _put(place: dict[str, Any], parts: list[str], value: object) -> bool:
    """Set a value deep inside; False when something on the way is no section."""
    # Names of arms may hold dots, so the longest key that exists is meant.
    counts = range(len(parts), 0, -1)
    count = next((count for count in counts if ".".join(parts[:count]) in place), 1)
    key, rest = ".".join(parts[:count]), parts[count:]
    if not rest:
        place[key] = value
        return True
    below = place.get(key)
    if isinstance(below, str) and key in SOURCE_KEYS:
        below = {"source": below}
    if not isinstance(below, dict | None):
        return False
    # A copy, since the settings of a series may share the section.
    place[key] = dict(below or {})
    return _put(place[key], rest, value)


class _CautiousResolver(VersionedResolver):
    """Takes for text only what readers of YAML 1.1 and of YAML 1.2 both do; the rest is quoted."""

    def __init__(self, version: Any = None, loader: Any = None) -> None:
        super().__init__((1, 1), loader)
        self.newer = VersionedResolver((1, 2), loader)

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)
        return self.newer.resolve(kind, value, implicit) if str(tag) == f"{_TAG}str" else tag


class _Representer(SafeRepresenter):
    """Writes 1.0e-05 for 1e-05, which readers of YAML 1.1 take for text."""

    def represent_float(self, data: float) -> ScalarNode:
        node = super().represent_float(data)
        if "." not in node.value:
            node.value = node.value.replace("e", ".0e")
        return node


_Representer.add_representer(float, _Representer.represent_float)


def compose(text: str) -> Node | None:
    """The nodes of a YAML text, which know where they stand in it.

    Raises:
        YAMLError: it is not YAML.
    """
    node: Node | None = YAML(typ="safe", pure=True).compose(text)
    return node


def yaml_text(data: Any) -> str:
    """Data as YAML, keys in their order, that readers of YAML 1.1 and of 1.2 take for the same."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.Resolver = _CautiousResolver
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    out = io.StringIO()
    yaml.dump(data, out)
    return out.getvalue()
