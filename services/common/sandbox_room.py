"""Builds the room that untrusted code runs in, and starts an interpreter there.

A script of the standard library alone, run with `-I -S`; its settings are the JSON in SANDBOX. It
stays outside of the namespaces that it makes, and ends the run when its time is over.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any

BROKEN_EXIT = 97
NOBODY = 65534
_CLONE = {
    "mount": 0x00020000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "cgroup": 0x02000000,
}
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_SYS_MOUNT_SETATTR = 442
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_TMP_BYTES, _TMP_FILES = 16 << 20, 4_096
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    """Run the code; return its exit status, 128 + signal, or 97 where there is no room."""
    settings: dict[str, Any] = json.loads(os.environ["SANDBOX"])
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    enter_namespaces(user=settings["user_namespace"])
    child = os.fork()
    if child == 0:
        try:
            _inside(settings)
        except BaseException as error:
            os.write(2, f"{error}\n".encode())
        os._exit(BROKEN_EXIT)
    return _wait(child, settings["timeout_s"])


def enter_namespaces(*, user: bool) -> None:
    """Leave the caller's namespaces; processes started from here on are in a new one. Raises
    OSError."""
    uid, gid = os.geteuid(), os.getegid()
    names = [name for name in _CLONE if user or name != "user"]
    _check(_libc.unshare(sum(_CLONE[name] for name in names)), "unshare")
    if user:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{NOBODY} {uid} 1")
        _write("/proc/self/gid_map", f"{NOBODY} {gid} 1")


def _inside(settings: dict[str, Any]) -> None:
    """Become the first process of the room; never returns but by an error."""
    os.setsid()
    build_root(settings["root"], settings["paths"])
    _libc.sethostname(b"sandbox", 7)
    if not settings["user_namespace"]:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _limit(settings)
    told = settings["told"]
    os.dup2(told, 3, inheritable=True)
    os.closerange(4, 4096)
    arguments = [settings["python"], "-I", "-S", "-B", "-c", settings["runner"]]
    os.execve(settings["python"], arguments, {"LC_ALL": "C.UTF-8"})


def build_root(root: str, paths: list[str]) -> None:
    """Make the interpreter's folders, read-only, the whole file system. Raises OSError."""
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    for path in paths:
        _bind(path, root + path)
    os.makedirs(root + "/dev", 0o755)
    for device in ("/dev/null", "/dev/urandom"):
        _touch(root + device)
        _mount(device, root + device, "", _MS_BIND)
    os.mkdir(root + "/tmp")
    limits = f"size={_TMP_BYTES},nr_inodes={_TMP_FILES},mode=1777"
    _mount("tmpfs", root + "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, limits)
    os.chdir(root)
    _check(_libc.syscall(_SYS_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount")
    os.chdir("/")
    _read_only("/", recursive=False)


def _bind(path: str, target: str) -> None:
    """Show a folder or file of the host, read-only; a link is made again."""
    if os.path.lexists(target):
        return
    os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.mkdir(target, 0o755)
    else:
        _touch(target)
    _mount(path, target, "", _MS_BIND | _MS_REC)
    _read_only(target, recursive=True)


def _read_only(path: str, *, recursive: bool) -> None:
    """Set a mount read-only; with all mounts below it where `recursive`."""
    attributes = (ctypes.c_uint64 * 4)(_ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    done = _libc.syscall(
        _SYS_MOUNT_SETATTR, _AT_FDCWD, path.encode(), flags, ctypes.byref(attributes), size
    )
    _check(done, f"mount_setattr {path}")


def _limit(settings: dict[str, Any]) -> None:
    seconds = int(settings["timeout_s"]) + 1
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: settings["memory_bytes"],
        resource.RLIMIT_FSIZE: settings["file_bytes"],
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_NPROC: 1,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: 64,
    }
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))


def _wait(child: int, timeout_s: float) -> int:
    """Wait for the run, and kill it after its time: with its first process its namespace ends."""
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    _, status = os.waitpid(child, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    texts = (source.encode(), target.encode(), kind.encode() or None)
    done = _libc.mount(*texts, ctypes.c_ulong(flags), data.encode() or None)
    _check(done, f"mount {target}")


def _touch(path: str) -> None:
    with open(path, "x"):
        pass


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), "prctl")


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as problem:
        print(problem.strerror or problem)
        sys.exit(BROKEN_EXIT)
