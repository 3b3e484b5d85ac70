"""Runs small generated functions, of a closed vocabulary, in a process of their own.

Two walls. A program is parsed first and may hold nothing but what the micro
laboratory's domain `code` is made of: one function over a list of numbers, list
comprehensions, arithmetic, comparisons, six builtins. No attribute, no import, no
loop, no string but a docstring, so there is nothing to reach the system with. What
passes runs in a separate process with limits on time, memory and files; a program
that ends the process fails alone, and the rest go on in a new one.

Text of any other kind is refused, which is why this is no home for HumanEval.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Sequence

FUNCTIONS = ("sum", "len", "max", "min", "sorted", "abs")
LARGEST = 10_000  # of numbers in a program: repeating a list by more would only fill memory
SECONDS = 2
MEMORY_BYTES = 2**29

_NODES = (
    ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Return, ast.Expr, ast.Assert,
    ast.ListComp, ast.comprehension, ast.Name, ast.Load, ast.Store, ast.Constant, ast.List,
    ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Mod, ast.FloorDiv,
    ast.UnaryOp, ast.USub, ast.Not, ast.BoolOp, ast.And, ast.Or, ast.IfExp,
    ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
    ast.Call, ast.keyword, ast.Subscript, ast.Slice,
)  # fmt: skip

# The child reads one program a line and answers with one line: "" or what went wrong.
_CHILD = f"""
import json, resource, signal, sys
names = {FUNCTIONS!r}
allowed = {{name: getattr(__builtins__, name) for name in names}}
allowed["AssertionError"] = AssertionError
read, write = sys.stdin, sys.stdout
for limit, value in ((resource.RLIMIT_AS, {MEMORY_BYTES}), (resource.RLIMIT_FSIZE, 0)):
    try:
        resource.setrlimit(limit, (value, value))
    except (ValueError, OSError):
        pass  # not every system has each; the time limit holds everywhere
for line in read:
    fault = ""
    signal.setitimer(signal.ITIMER_PROF, {SECONDS})
    try:
        exec(json.loads(line), {{"__builtins__": allowed}})
    except BaseException as error:
        fault = f"{{type(error).__name__}}: {{error}}"[:200]
    signal.setitimer(signal.ITIMER_PROF, 0)
    write.write(json.dumps(fault) + "\\n")
    write.flush()
"""


def refused(program: str, functions: Sequence[str]) -> str:
    """Why a program is not run, or "".

    Args:
        program: Its text.
        functions: Names of the functions it may define, each once and at the top.
    """
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"{type(error).__name__}: {getattr(error, 'msg', error)}"
    defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    if sorted(defined) != sorted(functions):
        return f"it defines {', '.join(defined) or 'nothing'}, allowed is {', '.join(functions)}"
    nodes = list(ast.walk(tree))
    docs = [node.value for node in nodes if isinstance(node, ast.Expr)]
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node in docs:
            continue
        fault = _fault(node, functions)
        if fault:
            return f"{fault} is outside the closed vocabulary"
    return ""


def _fault(node: ast.AST, functions: Sequence[str]) -> str:
    if not isinstance(node, _NODES):
        return type(node).__name__
    if isinstance(node, ast.FunctionDef) and (node.decorator_list or node.name not in functions):
        return f"a function {node.name}"
    if isinstance(node, ast.Name | ast.arg):
        name = node.id if isinstance(node, ast.Name) else node.arg
        return f"the name {name}" if name.startswith("_") else ""
    if isinstance(node, ast.Constant):
        value = node.value
        if value is None or (isinstance(value, int) and abs(value) <= LARGEST):
            return ""
        # Python refuses to write very long numbers in decimal.
        long = isinstance(value, int) and value.bit_length() > 128
        return "a long number" if long else repr(value)[:40]
    if isinstance(node, ast.Call):
        known = (*FUNCTIONS, *functions, "candidate")
        if not isinstance(node.func, ast.Name):
            return "a call of what has no name"
        return "" if node.func.id in known else f"a call of {node.func.id}"
    return ""


class ProgramRunner:
    """Runs programs one after the other; to be used in `with`.

    A process is started when the first program comes, and again after one that
    ended it.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None

    def __enter__(self) -> ProgramRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def fault(self, program: str, functions: Sequence[str]) -> str:
        """Run a program: "" where it ends without an error, else what went wrong.

        Args:
            program: Its text, with the calls that test it.
            functions: Names of the functions it may define.
        """
        why = refused(program, functions)
        if why:
            return f"not run: {why}"
        child = self._child = self._child or _start()
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(json.dumps(program) + "\n")
            child.stdin.flush()
            answer = child.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._stop()
            return f"the process ended; a program has {SECONDS} s and {MEMORY_BYTES // 2**20} MiB"
        return str(json.loads(answer))

    def _stop(self) -> None:
        if self._child is not None:
            child, self._child = self._child, None
            child.kill()
            child.communicate()


def _start() -> subprocess.Popen[str]:
    # Isolated, without site packages, without our environment.
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        text=True,
    )
