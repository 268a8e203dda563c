"""The instance on this host: its run directory, its lock, and the instances that run already.

    <run_dir>/<name>/lock           held by flock(2) while the supervisor lives: pid, start time
    <run_dir>/<name>/pid            the pid alone, for scripts
    <run_dir>/<name>/control.sock   the control socket
    <run_dir>/<name>/api.key        the API's key, when it was drawn by us (0600)

flock, not fcntl: a POSIX lock is lost when *any* descriptor of the file is closed by the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.carrying import Keep, Take
from gateway.config import Config
from gateway.errors import InstanceError
from shm.segment import Owner

SYSTEM_RUN_DIR = Path("/run/tidegate")
CONTROL_SOCKET = "control.sock"
SO_ACCEPTCON = 0x10000
"""Flag of a listening socket in /proc/net/unix, from <linux/net.h>."""


def default_run_dirs() -> list[Path]:
    """Where instances live, best first: the system's place, the user's, a last resort.

    None needs HOME or an entry in /etc/passwd: containers run with random user ids.
    """
    places = [SYSTEM_RUN_DIR]
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        places.append(Path(runtime) / "tidegate")
    places.append(Path(tempfile.gettempdir()) / f"tidegate-{os.getuid()}")
    return places


class Instance:
    """The run directory, held: as long as this object lives, no other supervisor can have it."""

    def __init__(self, name: str, directory: Path, lock_fd: int) -> None:
        self.name = name
        self.directory = directory
        self.owner = Owner.this_process()
        self._lock_fd = lock_fd

    def carried(self, keep: Keep) -> dict[str, Any]:
        return {
            "name": self.name,
            "directory": str(self.directory),
            "lock": keep(self._lock_fd),
        }

    @classmethod
    def restore(cls, state: dict[str, Any], take: Take) -> Instance:
        """Still held: flock(2) belongs to the open file, whatever its descriptor's number."""
        return cls(state["name"], Path(state["directory"]), take(state["lock"]))

    @property
    def control_path(self) -> Path:
        return self.directory / CONTROL_SOCKET

    @property
    def pid_path(self) -> Path:
        return self.directory / "pid"

    @classmethod
    def take(cls, config: Config) -> Instance:
        """Makes and locks the run directory. Raises InstanceError; says who holds it, if anyone."""
        directory = _make_directory(config)
        with _named(directory), contextlib.ExitStack() as held:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            lock_fd = os.open(directory / "lock", flags, 0o644)
            held.callback(os.close, lock_fd)
            _lock(lock_fd, config.gateway.name, directory)
            instance = cls(config.gateway.name, directory, lock_fd)
            os.ftruncate(lock_fd, 0)
            os.pwrite(lock_fd, f"{instance.owner.pid} {instance.owner.start}\n".encode(), 0)
            # We hold the lock, so whoever made these is dead.
            for leftover in (instance.control_path, instance.pid_path):
                leftover.unlink(missing_ok=True)
            _write_whole(instance.pid_path, f"{instance.owner.pid}\n", 0o644)
            held.pop_all()
        return instance

    def admit(self, config: Config) -> None:
        """Lets those in whom [control] names, and nobody else; who may do what is checked later."""
        self.directory.chmod(directory_mode(config))
        if self.control_path.exists():
            self.control_path.chmod(socket_mode(config))

    def api_key(self, configured: str) -> str:
        """The configured key, or the one drawn once and kept in `api.key`. InstanceError."""
        if configured:
            return configured
        path = self.directory / "api.key"
        with _named(path):
            with contextlib.suppress(FileNotFoundError):
                if kept := path.read_text(encoding="ascii", errors="replace").strip():
                    return kept
            drawn = secrets.token_urlsafe(32)
            _write_whole(path, drawn + "\n", 0o600)
        return drawn

    def release(self) -> None:
        """Removes what told of this instance, then lets go of the lock (whose file stays).

        Removing a lock file would let two newcomers lock two files of one name.
        """
        for path in (self.control_path, self.pid_path):
            path.unlink(missing_ok=True)
        os.close(self._lock_fd)


@dataclass(frozen=True, slots=True)
class RunningInstance:
    """An instance that answers on its control socket."""

    name: str
    pid: int
    control_path: Path


def find_instances() -> list[RunningInstance]:
    """The instances of this host that this user can see, found without arguments.

    /proc/net/unix has the path of every listening Unix socket, whatever run directory was chosen;
    a socket file whose process is dead is not in it (proc(5)).
    """
    found = []
    for path in sorted(_listening_paths()):
        try:
            ours = path.name == CONTROL_SOCKET and (path.parent / "lock").exists()
            if ours and path.is_socket():
                found.append(RunningInstance(path.parent.name, _pid_beside(path), path))
        except OSError:
            continue  # in a directory that this user may not enter
    return found


def directory_mode(config: Config) -> int:
    """Mode of the instance's directory: others may pass through it, never list it."""
    return 0o711 if config.control.operators or config.control.observers else 0o700


def socket_mode(config: Config) -> int:
    """Mode of the control socket: connecting takes the right to write (unix(7))."""
    return 0o666 if config.control.operators or config.control.observers else 0o600


def _listening_paths() -> set[Path]:
    listening = set()
    for line in Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and int(fields[3], 16) & SO_ACCEPTCON and fields[7].startswith("/"):
            listening.add(Path(fields[7]))
    return listening


def _pid_beside(control_path: Path) -> int:
    try:
        return int((control_path.parent / "pid").read_text())
    except (OSError, ValueError):
        return 0


def _lock(lock_fd: int, name: str, directory: Path) -> None:
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock_fd, 64, 0).split()
        pid = holder[0].decode(errors="replace") if holder else "unknown"
        raise InstanceError(
            f'instance "{name}" runs already as process {pid} in {directory}',
            remedy=f"stop it (`tidegate stop -i {name}`), or give this one another "
            "gateway.name and other ports",
            code="instance_running",
        ) from None


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Names the file in an error about it; `path` where the error does not know."""
    try:
        yield
    except OSError as error:
        raise InstanceError(
            f"{error.filename or path}: {error.strerror}",
            remedy="remove it if it is in the way, or set another gateway.run_dir",
            code="run_dir",
        ) from error


def _make_directory(config: Config) -> Path:
    """The instance's own directory, private unless the control socket is for others too."""
    mode = directory_mode(config)
    wanted = config.gateway.run_dir
    places = [Path(wanted)] if wanted else default_run_dirs()
    reasons = []
    for place in places:
        directory = place / config.gateway.name
        try:
            place.mkdir(mode=0o755, parents=True, exist_ok=True)
            # In a world-writable parent somebody else may have put a directory of our name.
            if place.parent.stat().st_mode & stat.S_IWOTH and place.lstat().st_uid != os.getuid():
                raise PermissionError(1, "belongs to another user")
            directory.mkdir(mode=mode, exist_ok=True)
            directory.chmod(mode)
            with tempfile.TemporaryFile(dir=directory):
                return directory
        except OSError as error:
            reasons.append(f"{directory}: {error.strerror}")
    raise InstanceError(
        f"no directory for the control socket ({'; '.join(reasons)})",
        remedy="set gateway.run_dir to a directory that this user may write",
        code="run_dir",
    )


def _write_whole(path: Path, text: str, mode: int) -> None:
    """Writes a file so that a reader sees all of it or none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "w") as file:
        file.write(text)
    temporary.replace(path)
