"""Lines of code of each room: without blank lines, comments and docstrings.

python scripts/size.py            # every room of laura/, and the sum
python scripts/size.py study      # every file of one room
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "laura"
NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
}  # fmt: skip


def code_lines(text: str) -> int:
    """Lines that hold code; a string that stands alone is words, not code."""
    words: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            words |= set(range(value.lineno, (value.end_lineno or value.lineno) + 1))
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - words)


def main() -> None:
    """Print the table."""
    lines: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE)
        count = code_lines(path.read_text(encoding="utf-8"))
        room = inside.parts[0] if len(inside.parts) > 1 else "."
        if room in sys.argv[1:]:
            print(f"{count:7,}  {inside}")
        lines[room] += count
        files[room] += 1
    if not sys.argv[1:]:
        for room, count in lines.most_common():
            print(f"{count:7,} {files[room]:4}  {room}")
        print(f"{lines.total():7,} {files.total():4}  laura")


if __name__ == "__main__":
    main()
