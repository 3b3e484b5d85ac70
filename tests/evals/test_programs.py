"""Small generated programs: a closed vocabulary, a process of its own, one failure alone."""

from __future__ import annotations

import os

import pytest

from laura.evals.sandbox.vocabulary import ProgramRunner, refused
from laura.micro.targets import rows

HEAD = 'def solve(xs):\n    """Do it."""\n'
CHECK = "\ndef check(candidate):\n    assert candidate([1, 2]) == 3\n\ncheck(solve)\n"
NAMES = ("solve", "check")


def fault(body: str) -> str:
    with ProgramRunner() as runner:
        return runner.fault(HEAD + body + CHECK, NAMES)


def test_every_solution_that_comes_with_the_domain_passes() -> None:
    with ProgramRunner() as runner:
        for row in rows("code", "test", 200):
            program = row["prompt"] + row["canonical_solution"] + "\n" + row["test"]
            # The same verdict as plain Python's, without any of the walls.
            exec(program + "\ncheck(solve)\n", {})
            assert runner.fault(program + "\ncheck(solve)\n", NAMES) == ""


def test_what_is_wrong_is_told() -> None:
    assert fault("    return sum(xs)\n") == ""
    assert fault("    return sum(xs) + 1\n").startswith("AssertionError")
    assert fault("    return xs[7]\n").startswith("IndexError")
    assert fault("    return total\n").startswith("NameError")
    assert "SyntaxError" in fault("    return sum(xs\n")


@pytest.mark.parametrize(
    "body",
    [
        "    import os\n    return 3\n",
        "    return __import__('os')\n",
        "    return xs.__class__\n",
        "    return open('/etc/passwd')\n",
        "    return eval('3')\n",
        "    return [x for x in xs].append(3)\n",
        "    return (lambda: 3)()\n",
        "    return f'{xs}'\n",
        "    while True: pass\n",
        "    return __builtins__\n",
        "    return 10 ** 9 ** 9\n",
        "    return [0] * 99999999\n",
        "    return 3\n\nprint(3)\n",
        "    return 3\n\ndef check(c):\n    return 3\n",
        "    return 3\n\ndef other():\n    return 3\n",
        "    global xs\n    return 3\n",
        "    return sum(*xs)\n",
        "    return 3.5\n",
        "    return '%s' % xs\n",
        "    return 'a' * 9\n",
        "    return (yield 3)\n",
    ],
)
def test_what_is_outside_the_vocabulary_is_never_run(body: str) -> None:
    assert fault(body).startswith("not run: ")


def test_a_deep_program_is_refused_not_fatal() -> None:
    assert refused(HEAD + "    return " + "(" * 5000 + "1" + ")" * 5000 + "\n", ["solve"])
    assert refused(HEAD + "    return " + "-" * 20000 + "1\n", ["solve"])


@pytest.mark.parametrize(
    "body",
    [
        "    return 0x" + "f" * 9000 + "\n",  # too long for Python to write in decimal
        "    return " + "xs" + "()" * 3000 + "\n",
        "    return " + "xs" + "[0]" * 3000 + "()\n",
        "    return 9e999999j\n",
        "    return " + "not " * 3000 + "xs\n",
        "    return " + "+".join(["1"] * 20000) + "\n",
        "    return '\\ud800'\n",
        "    \0\n",
    ],
    ids=range(8),
)
def test_nothing_in_a_program_ends_the_runner(body: str) -> None:
    with ProgramRunner() as runner:
        assert runner.fault(HEAD + body + CHECK, NAMES)
        assert runner.fault(HEAD + "    return sum(xs)\n" + CHECK, NAMES) == ""


def test_a_program_that_ends_the_process_fails_alone() -> None:
    many = "for x in [1] * 9999 for y in [1] * 9999 for z in [1] * 9999 if x > 1"
    endless = f"    return sum([x {many}])\n"
    large = "    return len([0] * 9999 * 9999)\n"
    with ProgramRunner() as runner:
        assert "s and" in runner.fault(HEAD + endless + CHECK, NAMES)
        assert "MemoryError" in runner.fault(HEAD + large + CHECK, NAMES)
        assert runner.fault(HEAD + "    return sum(xs)\n" + CHECK, NAMES) == ""


def test_the_process_ends_with_its_runner_and_sees_nothing_of_ours() -> None:
    with ProgramRunner() as runner:
        runner.fault(HEAD + "    return sum(xs)\n" + CHECK, NAMES)
        assert runner._child is not None
        number = runner._child.pid
        with open(f"/proc/{number}/environ", "rb") as file:
            assert b"HOME=" not in file.read()
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)
