"""Programs that try to get out, hang, fill or cheat, and what becomes of each."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ORDINARY = 4242
MIB = 2**20
LIMITS = {
    "cpu_seconds": 1, "wall_seconds": 30.0, "memory_bytes": 256 * MIB, "processes": 16,
    "file_bytes": MIB, "tmp_bytes": 4 * MIB, "output_bytes": MIB,
}  # fmt: skip

OUT_OF_CPU = "timed out: more than 1 s of CPU"
SHORT_WALL = 1.5  # for programs that use no CPU; for the others a busy machine may be slow
OUT_OF_TIME = "timed out: more than 1.5 s by the clock"
OUT_OF_MEMORY = "out of memory: a program has 256 MiB"
TOO_MUCH = "printed more than 1 MiB"
EXIT_0 = "ended before the tests: exit code 0"
REFUSED = "PermissionError: [Errno 1] Operation not permitted (line 2)"

# Name: (program, its fault). {canary}, {port}, {abstract} and {home} are filled in.
HOSTILE: dict[str, tuple[str, str]] = {
    # hangs
    "hangs": ("while True: pass", OUT_OF_CPU),
    "hangs in C": ("sum(range(10**13))", OUT_OF_CPU),
    "hangs in a regular expression": ("import re\nre.match('(a*)*b', 'a' * 40)", OUT_OF_CPU),
    "hangs and ignores the signal": (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        "killed by SIGKILL",
    ),
    "hangs in a thread": (
        "import threading\ndef spin():\n    while True: pass\n"
        "thread = threading.Thread(target=spin)\nthread.start()\nthread.join()",
        OUT_OF_CPU,
    ),
    "hangs in the text of its error": (
        "class Endless(Exception):\n    def __str__(self):\n        while True: pass\n"
        "raise Endless",
        OUT_OF_CPU,
    ),
    "sleeps": ("import time\ntime.sleep(1000)", OUT_OF_TIME),
    "stops itself": ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", OUT_OF_TIME),
    "waits for itself": (
        "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()", OUT_OF_TIME,
    ),
    # processes and threads
    "forks": ("import os\nwhile True: os.fork()", REFUSED),
    "starts a shell": (
        "import subprocess\ntry: subprocess.run(['/bin/sh', '-c', 'true'])\n"
        "except PermissionError: raise LookupError('refused')",
        "LookupError: refused (line 3)",
    ),
    "spawns": ("import os\nos.posix_spawn('/bin/true', ['true'], {{}})", (
        "PermissionError: [Errno 1] Operation not permitted: '/bin/true' (line 2)"
    )),
    "starts a worker": (
        "import multiprocessing\nmultiprocessing.get_context('fork').Process(target=int).start()",
        REFUSED,
    ),
    "starts threads without end": (
        "import threading, time\nthreading.stack_size(65536)\nstarted = 0\nwhile True:\n"
        "    threading.Thread(target=time.sleep, args=(9,)).start()\n    started += 1\n"
        "    assert started < 16",
        "RuntimeError: can't start new thread (line 5)",
    ),
    "kills everything": (
        "import os\nfor victim in (os.getppid(), 1, 0 - 1):\n    try: os.kill(victim, 9)\n"
        "    except OSError: pass\nassert False, 'still here'",
        "killed by SIGKILL",  # its judge is gone first
    ),
    "kills its group": ("import os\nos.killpg(0, 9)", "killed by SIGKILL"),
    "kills itself": ("import os\nos.kill(os.getpid(), 9)", "killed by SIGKILL"),
    # memory
    "allocates at once": ("bytearray(2**40)", OUT_OF_MEMORY),
    "allocates bit by bit": ("kept = []\nwhile True: kept.append(bytes(10**6))", OUT_OF_MEMORY),
    "repeats a text": ("'a' * 10**9", OUT_OF_MEMORY),
    "maps memory": (
        "import mmap\nmmap.mmap(-1, 2**30)", "OSError: [Errno 12] Cannot allocate memory (line 2)",
    ),
    "makes a memory file": ("import os\nos.memfd_create('x')", REFUSED),
    "shares memory": (
        "from multiprocessing.shared_memory import SharedMemory\n"
        "SharedMemory('laura', create=True, size=2**30)",
        "FileNotFoundError: [Errno 2] No such file or directory: '/laura' (line 2)",
    ),
    "asks for System V memory": (
        "import ctypes, os\nlibrary = ctypes.CDLL(None, use_errno=True)\n"
        "assert library.shmget(0, 2**20, 0o1600) != -1, os.strerror(ctypes.get_errno())",
        "AssertionError: Operation not permitted (line 3)",
    ),
    # files
    "fills /tmp": (
        "for number in range(100):\n    open(f'/tmp/{{number}}', 'wb').write(bytes(10**6))",
        "OSError: [Errno 28] No space left on device (line 2)",
    ),
    "writes a large file": (
        "with open('/tmp/x', 'wb', 0) as file:\n    while True: file.write(bytes(10**6))",
        "OSError: [Errno 27] File too large (line 2)",
    ),
    "writes at the root": (
        "open('/x', 'w')", "OSError: [Errno 30] Read-only file system: '/x' (line 1)",
    ),
    "writes among the devices": (
        "open('/dev/x', 'w')", "OSError: [Errno 30] Read-only file system: '/dev/x' (line 1)",
    ),
    "writes into the standard library": (
        "import os\ntry: open(os.__file__, 'a')\nexcept OSError: raise LookupError('refused')",
        "LookupError: refused (line 3)",
    ),
    "deletes the standard library": (
        "import os, shutil\nshutil.rmtree(os.path.dirname(os.__file__), ignore_errors=True)\n"
        "import json.tool, wave\nassert not os.path.exists(os.__file__), 'still there'",
        "AssertionError: still there (line 4)",
    ),
    "writes outside": (
        "open('{canary}', 'w').write('gone')",
        "FileNotFoundError: [Errno 2] No such file or directory: '{canary}' (line 1)",
    ),
    "deletes outside": (
        "import os\nos.remove('{canary}')",
        "FileNotFoundError: [Errno 2] No such file or directory: '{canary}' (line 2)",
    ),
    "reads outside": (
        "open('{canary}').read()",
        "FileNotFoundError: [Errno 2] No such file or directory: '{canary}' (line 1)",
    ),
    "reads the home folder": (
        "import os\nassert not os.path.exists('{home}'), 'seen'\n"
        "assert os.listdir(os.path.expanduser('~')), 'empty'",
        "AssertionError: empty (line 3)",
    ),
    "reads the passwords": (
        "open('/etc/passwd')",
        "FileNotFoundError: [Errno 2] No such file or directory: '/etc/passwd' (line 1)",
    ),
    "reads its parent's memory": (
        "open('/proc/1/mem')",
        "FileNotFoundError: [Errno 2] No such file or directory: '/proc/1/mem' (line 1)",
    ),
    "reads the environment": (
        "import os\nassert not os.environ.keys() - {{'LC_CTYPE'}}, sorted(os.environ.items())[:3]",
        "AssertionError: [('HOME', '/tmp'), ('LC_CTYPE', 'C.UTF-8'), ('PWD', '/tmp')] (line 2)",
    ),
    # network
    "connects": (
        "import socket\nsocket.create_connection(('127.0.0.1', {port}))", REFUSED,
    ),
    "fetches": (
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:{port}')",
        "URLError: <urlopen error [Errno 1] Operation not permitted> (line 2)",
    ),
    "sends a datagram": (
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM)", REFUSED,
    ),
    "talks to the host of the machine": ("import socket\nsocket.socket(40)", REFUSED),
    "knocks at an abstract socket": (
        "import socket\nsocket.socket(socket.AF_UNIX).connect('\\0{abstract}')",
        "ConnectionRefusedError: [Errno 111] Connection refused (line 2)",
    ),
    # rights
    "becomes root": (
        "import os\ntry: os.setuid(0)\nexcept OSError: raise LookupError('refused')",
        "LookupError: refused (line 3)",
    ),
    "leaves the root": (
        "import os\nos.chroot('/tmp')",
        "PermissionError: [Errno 1] Operation not permitted: '/tmp' (line 2)",
    ),
    "makes a namespace": (
        "import ctypes, os\nlibrary = ctypes.CDLL(None, use_errno=True)\n"
        "assert library.unshare(0x10000000) == 0, os.strerror(ctypes.get_errno())",
        "AssertionError: Operation not permitted (line 3)",
    ),
    "mounts": (
        "import ctypes, os\nlibrary = ctypes.CDLL(None, use_errno=True)\n"
        "assert library.mount(b'x', b'/tmp', b'tmpfs', 0, 0) == 0, "
        "os.strerror(ctypes.get_errno())",
        "AssertionError: Operation not permitted (line 3)",
    ),
    "watches its parent": (
        "import ctypes, os\nlibrary = ctypes.CDLL(None, use_errno=True)\n"
        "assert library.ptrace(16, os.getppid(), 0, 0) == 0, os.strerror(ctypes.get_errno())",
        "AssertionError: Operation not permitted (line 3)",
    ),
    "raises its limits": (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))",
        "ValueError: not allowed to raise maximum limit (line 2)",
    ),
    # output
    "prints without end": ("while True: print('x' * 10**6)", TOO_MUCH),
    "prints errors without end": (
        "import os\nwhile True: os.write(2, b'x' * 10**6)", TOO_MUCH,
    ),
    # cheats
    "exits": ("import sys\nsys.exit(0)\nassert False", EXIT_0),
    "exits at once": ("import os\nos._exit(0)\nassert False", EXIT_0),
    "raises SystemExit": ("raise SystemExit\nassert False", EXIT_0),
    "exits with another code": ("raise SystemExit(3)", "ended before the tests: exit code 3"),
    "exits after the error": (
        "import atexit, os\natexit.register(os._exit, 0)\nassert False", "AssertionError (line 3)",
    ),
    "exits in a hook": (
        "import os, sys\nsys.excepthook = lambda *_: os._exit(0)\nassert False",
        "AssertionError (line 3)",
    ),
    "becomes another program": (
        "import os, sys\nos.execv(sys.executable, [sys.executable, '-S', '-c', 'pass'])", EXIT_0,
    ),
    "writes a verdict": (
        "import os\nfor number in range(1, 20):\n    try: os.write(number, b'passed')\n"
        "    except OSError: pass\nos._exit(0)",
        EXIT_0,
    ),
    "closes everything": ("import os\nos.closerange(0, 99)", EXIT_0),
    "prints that it passed": ("print('passed')\nassert False", "AssertionError (line 2)"),
    "swaps the builtins": (
        "import builtins\nbuiltins.BaseException = builtins.MemoryError = int\nassert False",
        "ended before the tests: exit code 1",
    ),
    # broken
    "crashes": ("import ctypes\nctypes.string_at(0)", "killed by SIGSEGV"),
    "aborts": ("import os\nos.abort()", "killed by SIGABRT"),
    "recurses": (
        "def again(): again()\nagain()",
        "RecursionError: maximum recursion depth exceeded (line 1)",
    ),
    "raises an error without a text": (
        "class Silent(Exception):\n    def __str__(self): raise self\nraise Silent",
        "Silent whose text cannot be read (line 3)",
    ),
    "raises an error without a name": (
        "raise type('', (Exception,), {{}})", "an error without a name (line 1)",
    ),
    "names an address": (
        "raise ValueError(object())", "ValueError: <object object at 0x...> (line 1)",
    ),
    "moves the cursor": (
        "raise ValueError('\\x1b[2J\\n\\ngone')", "ValueError: ?[2J gone (line 1)",
    ),
    "reads": ("input()", "EOFError: EOF when reading a line (line 1)"),
    "makes a context of asynchronous I/O": (
        "import ctypes, os\nlibrary = ctypes.CDLL(None, use_errno=True)\n"
        "context = ctypes.c_ulong()\n"
        "number = {{'x86_64': 206, 'aarch64': 0}}[os.uname().machine]\n"
        "assert library.syscall(number, 1, ctypes.byref(context)) == 0, "
        "os.strerror(ctypes.get_errno())",
        "AssertionError: Operation not permitted (line 5)",
    ),
    "imports an installed package": (
        "import glob, os, sys\nlibrary = os.path.dirname(os.__file__)\n"
        "sys.path += [library + '/site-packages', '/usr/lib/python3/dist-packages']\n"
        "assert not glob.glob(library + '/site-packages/*'), 'seen'\nimport torch",
        "ModuleNotFoundError: No module named 'torch' (line 5)",
    ),
    "imports what is not there": (
        "import laura", "ModuleNotFoundError: No module named 'laura' (line 1)",
    ),
}  # fmt: skip

CHECK = """
import math
def check(candidate):
    assert candidate(2) == 4
    assert candidate([1, 2]) == [1, 4]
    assert abs(candidate(0.5) - 0.25) < 1e-9
    assert sorted(candidate({{3, 4}})) == [9, 16] and math.fabs(candidate(-3)) == 9
    try: candidate(None)
    except TypeError: pass
    else: raise AssertionError("None has no square")
check(solve)
""".replace("{{", "{").replace("}}", "}")
HONEST = [
    "def solve(x):\n    if isinstance(x, (list, set)): return type(x)(map(solve, x))\n"
    "    return x * x\n",
    "class Square:\n    def __call__(self, x):\n"
    "        return [*map(self, x)] if hasattr(x, '__iter__') else x ** 2\nsolve = Square()\n",
]
_ALWAYS = (
    "class Always{base}:\n"
    "    def __eq__(self, other): return True\n    def __hash__(self): return 0\n"
    "    __ne__ = __gt__ = lambda self, other: False\n"
    "    __lt__ = __le__ = __ge__ = __eq__\n"
    "    __sub__ = __rsub__ = __abs__ = __getitem__ = __call__ = lambda self, *_: self\n"
    "    def __iter__(self): return iter([9, 16])\n    __len__ = lambda self: 2\n"
    "    def __float__(self): return 9.0\n"
)
# Each tries to pass without solving; none of them may.
CHEATS: dict[str, str] = {
    "equals everything": _ALWAYS.format(base="") + "def solve(x): return Always()",
    "is an integer that equals everything": (
        _ALWAYS.format(base="(int)") + "def solve(x): return Always(7)"
    ),
    "is a float that equals everything": (
        _ALWAYS.format(base="(float)") + "def solve(x): return Always(7)"
    ),
    "is a list that equals everything": (
        _ALWAYS.format(base="(list)") + "def solve(x): return Always([7])"
    ),
    "is a text that equals everything": (
        _ALWAYS.format(base="(str)") + "def solve(x): return Always('x')"
    ),
    "lies about its class": (
        _ALWAYS.format(base="") + "    __class__ = property(lambda self: int)\n"
        "def solve(x): return Always()"
    ),
    "is a class": _ALWAYS.format(base="") + "solve = Always",
    "is its own answer": _ALWAYS.format(base="") + "solve = Always()",
    "has a class that equals everything": (
        "class Meta(type):\n    def __eq__(self, other): return True\n"
        "    __hash__ = type.__hash__\nclass Answer(metaclass=Meta): pass\n"
        "def solve(x): return Answer"
    ),
    "exits when it is called": "import os\ndef solve(x): os._exit(0)",
    "raises SystemExit when it is called": "def solve(x): raise SystemExit(0)",
    "raises AssertionError": "def solve(x): raise AssertionError",
    "raises KeyboardInterrupt": "def solve(x): raise KeyboardInterrupt",
    "raises GeneratorExit": "def solve(x): raise GeneratorExit",
    "raises StopIteration": "def solve(x): raise StopIteration",
    "raises TypeError": "def solve(x): raise TypeError",
    "swaps abs": "import builtins\nbuiltins.abs = abs = lambda x: 0\ndef solve(x): return 4",
    "swaps the assertion": (
        "import builtins\nbuiltins.AssertionError = AssertionError = KeyError\n"
        "def solve(x): return 4"
    ),
    "swaps sorted and math": (
        "import builtins, math\nmath.fabs = lambda x: 9\nbuiltins.sorted = lambda x: [9, 16]\n"
        "math.inf = 0\ndef solve(x): return 4"
    ),
    "defines check": "def check(candidate): pass\ndef solve(x): return 4",
    "replaces check when it is called": (
        "def solve(x):\n    import sys\n    frame = sys._getframe()\n    while frame:\n"
        "        frame.f_globals['check'] = print\n        frame = frame.f_back\n    return 4"
    ),
    "reads the tests by frames": (
        "import sys\ndef solve(x):\n    frame, found = sys._getframe(), []\n    while frame:\n"
        "        found += [c for c in frame.f_code.co_consts if c in (4, 9)]\n"
        "        found += [*frame.f_locals.get('tests', ())]\n        frame = frame.f_back\n"
        "    return found[0] if found else None"
    ),
    "reads the tests by the garbage collector": (
        "import gc\ndef solve(x):\n    for thing in gc.get_objects():\n"
        "        code = getattr(thing, '__code__', None)\n"
        "        if getattr(thing, '__name__', '') == 'check': return code.co_consts[2]\n"
    ),
    "finds the verdict by the garbage collector": (
        "import gc, os\ndef solve(x):\n    for thing in gc.get_objects():\n"
        "        if isinstance(thing, dict) and 'VERDICT' in thing:\n"
        "            try: os.write(thing['VERDICT'], b'begun\\npassed')\n"
        "            except OSError: pass\n    os._exit(0)"
    ),
    "writes the verdict everywhere": (
        "import os\nfor number in range(64):\n    try: os.write(number, b'begun\\npassed')\n"
        "    except OSError: pass\nos._exit(0)"
    ),
    "writes the verdict without end": (
        "import os\nwhile True: os.write(4, b'begun\\npassed')"
    ),
    "answers before it is asked": (
        "import os\nanswer = b'6\\nl1;i4;'\nos.write(4, answer * 99)\ndef solve(x): return 4"
    ),
    "answers with a long number": "import os\nos.write(4, b'9' * 19 + b'\\n')\ndef solve(x): pass",
    "answers with a length below zero": "import os\nos.write(4, b'-1\\n')\ndef solve(x): pass",
    "answers half": "import os\nos.write(4, b'99\\nl1;')\nos._exit(0)",
    "answers deep": (
        "import os\nmessage = b'l1;' * 99999\n"
        "os.write(4, b'%d\\n' % len(message) + message)\ndef solve(x): pass"
    ),
    "answers with many": (
        "import os\nos.write(4, b'14\\nl99999999999;0')\nos._exit(0)"
    ),
    "answers with an odd dictionary": "import os\nos.write(4, b'9\\nl1;m1;0;0')\nos._exit(0)",
    "answers with an exception of no class": (
        "import os\nos.write(4, b'26\\nl3;s1;xs5;prints5;0 xxx')\ndef solve(x): pass"
    ),
    **{
        f"raises what is told as {told!r}": (
            f"import os\ntold = {told!r}\n"
            "body = b'l3;s1;Xs9;Exceptions%d;%s' % (len(told), told)\n"
            "os.write(4, b'%d\\n%s' % (len(body), body))\ndef solve(x): pass"
        )
        for told in (b"passed", b"begun\npassed", b"exit 0", b"signal x", b"fault", b"1\x1b[2J x")
    },
    "answers with another module": (
        "import os, sys\nmodule = type(sys)('__main__')\nsolve = module"
    ),
    "answers with an unheard-of number": (
        "import os\nos.write(4, b'7\\nl1;h77;')\ndef solve(x): pass"
    ),
    "kills its judge": "import os\ndef solve(x): os.kill(os.getppid(), 9)",
    "interrupts its judge": (
        "import os, signal\ndef solve(x):\n    os.kill(os.getppid(), signal.SIGINT)\n    return 4"
    ),
    "stops its judge": (
        "import os, resource\ndef solve(x):\n"
        "    resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))\n    return 4"
    ),
    "becomes another program when it is called": (
        "import os, sys\ndef solve(x): os.execv(sys.executable, ['python', '-S', '-c', 'pass'])"
    ),
    "traces": (
        "import sys\nsys.settrace(lambda *_: os._exit(0))\nimport os\ndef solve(x): return 4"
    ),
    "grows its arguments": (
        "def solve(x):\n    if isinstance(x, list): x[:] = [1, 4]\n    return x"
    ),
}  # fmt: skip

DRIVER = """
import ctypes, json, os, signal, sys
from laura.evals.sandbox import Program, ProgramLimits as Limits, Sandbox
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # what loses its parent comes to us
order = json.load(sys.stdin)
with Sandbox(Limits(**order["limits"]), order["workers"]) as sandbox:
    verdicts = sandbox.run([Program(*one) for one in order["programs"]])
signal.alarm(10)  # ends us with an error where one lives on
try:
    while os.waitpid(-1, 0):
        pass
except ChildProcessError:
    pass
answers = [[verdict.passed, verdict.fault, verdict.output] for verdict in verdicts]
json.dump({"user": os.getuid(), "verdicts": answers}, sys.stdout)
"""


def command(user: str, arguments: list[str]) -> list[str]:
    """`arguments` for the interpreter, as this user or, where that is root, as an ordinary one.

    Folders that are closed to others but lead to the interpreter or to Laura are
    opened for the command alone, in mounts of its own.
    """
    program = [sys.executable, *arguments]
    if user == "root" or os.geteuid() != 0:
        return program
    needed = [Path(sys.base_prefix), Path(sys.prefix), ROOT]
    closed: dict[Path, list[Path]] = {}
    for path in needed:
        for folder in reversed(path.parents):
            if not folder.stat().st_mode & 1:
                closed.setdefault(folder, []).append(path)
                break
    become = ["setpriv", f"--reuid={ORDINARY}", f"--regid={ORDINARY}", "--clear-groups", "--"]
    if not closed:
        return [*become, *program]
    lines = ["set -e", "kept=$(mktemp -d)", "mount -t tmpfs none $kept"]
    for number, path in enumerate(needed):
        lines += [f"mkdir $kept/{number}", f"mount --bind {shlex.quote(str(path))} $kept/{number}"]
    for folder, paths in closed.items():
        lines.append(f"mount -t tmpfs -o mode=0755 none {shlex.quote(str(folder))}")
        for path in paths:
            place = shlex.quote(str(path))
            lines += [f"mkdir -p {place}", f"mount --bind $kept/{needed.index(path)} {place}"]
    lines.append(f'exec {shlex.join(become)} "$@"')
    return ["unshare", "--mount", "sh", "-c", "\n".join(lines), "sh", *program]


def environment() -> dict[str, str]:
    """That of the command: where Laura is, and a secret no program may see."""
    return {
        **os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1",
        "LAURA_SECRET": "canary",
    }  # fmt: skip


def run_as(
    user: str,
    programs: Sequence[tuple[Any, ...]],
    workers: int = 2,
    limits: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run programs in a sandbox of the user: its id and each one's passed, fault, output."""
    order = {"programs": programs, "workers": workers, "limits": {**LIMITS, **(limits or {})}}
    ended = subprocess.run(
        command(user, ["-c", DRIVER]), input=json.dumps(order), env=environment(), cwd="/",
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    answer: dict[str, Any] = json.loads(ended.stdout)
    return answer


def run_hostile(user: str, words: dict[str, Any]) -> tuple[int, dict[str, list[Any]]]:
    """Run every hostile program: the id of the user, and passed, fault, output by name."""
    verdicts: dict[str, list[Any]] = {}
    for waits in (False, True):
        names = [name for name, (_, fault) in HOSTILE.items() if (fault == OUT_OF_TIME) == waits]
        programs = [(HOSTILE[name][0].format(**words),) for name in names]
        limits = {"wall_seconds": SHORT_WALL} if waits else {}
        answer = run_as(user, programs, 4 if waits else 2, limits)
        verdicts.update(zip(names, answer["verdicts"], strict=True))
    return answer["user"], verdicts
