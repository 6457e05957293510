"""Writing so that a reader never sees half a file: temporary name, fsync, rename."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .spec import KinoiseError

if TYPE_CHECKING:
    from torch import Tensor

MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, SyntaxError)
"""What taking values out of JSON raises that isn't as it should be: infinite sizes, endless nesting, odd dtypes."""

PATIENCE = "KINOISE_PATIENCE_S"
"""Environment variable: seconds to wait for a directory that another process has claimed. Launchers set it: what they begin
again would else fail because of its dying predecessor, which still saves."""
PAUSE_S = 0.1
ANOTHERS_S = 24 * 3600.0
"""After which what another machine left unfinished is nobody's: containers have another name whenever they are begun again."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a full disk or a forbidden path into one line that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise KinoiseError(
                f"the disk is full: could not write {path}. Free some space, then run the command again."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise KinoiseError(f"not allowed to write {path}. Choose another out= or change its permissions.") from error
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENAMETOOLONG):
            raise KinoiseError(f"can't write {path}: {error.strerror} ({error.filename}). Choose another out=.") from error
        raise


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write(temporary path)` and moves the result to `path` in one step; on failure nothing is left behind."""
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        try:
            write(temporary)
            temporary.chmod(0o644)
            sync(temporary)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync(path.parent)


def write_text(path: Path, text: str) -> None:
    write_file(path, lambda temporary: temporary.write_text(text))


def write_json(path: Path, value: Any) -> None:
    """Standard JSON: NaN and infinity are refused, since other readers would."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file; a full disk is an error like any other file's."""
    from safetensors import SafetensorError  # with torch, which whoever has tensors has loaded
    from safetensors.torch import save_file

    def write(temporary: Path) -> None:
        try:
            save_file(dict(tensors), temporary)
        except SafetensorError as error:
            said = re.search(r"os error (\d+)", str(error))
            if said is None:
                raise
            number = int(said[1])
            raise OSError(number, os.strerror(number), str(path)) from error

    write_file(path, write)


def read_json(path: Path) -> Any:
    """Raises KinoiseError when the file is missing or is not JSON, or nested deeper than can be read."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise KinoiseError(f"{path} does not exist") from error
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number of thousands of digits
        raise KinoiseError(f"{path} is not valid JSON ({error}): it was cut short or edited. Write it again.") from error


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yields a temporary directory beside `path` that becomes `path` when the block ends, and vanishes when it fails.

    What killed processes left there for the same `path` is removed.
    """
    path = Path(path)
    with disk_errors(path), unfinished(path) as temporary:
        yield temporary
        for item in [*temporary.rglob("*"), temporary]:
            sync(item)
        os.rename(temporary, path)
        sync(path.parent)


def write_large_file(path: Path, write: Callable[[Path], object]) -> None:
    """`write_file` for a file that takes long: also removes what killed processes left of it."""
    path = Path(path)
    with disk_errors(path), unfinished(path) as folder:
        temporary = folder / path.name
        write(temporary)
        temporary.chmod(0o644)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Yields a temporary directory beside `path`, which is gone after the block unless it was moved.

    Whoever makes one holds a lock on it: those without are a killed process's, and are removed first. Its name has this
    machine's in it, since a folder's lock is not seen by others that share the disk (NFS): theirs are removed after a day in
    which they didn't change.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(path)
    with ExitStack() as stack:
        while True:
            temporary = Path(tempfile.mkdtemp(prefix=_unfinished(path), dir=path.parent))
            with suppress(FileNotFoundError):  # before it had its lock, another process removed it
                descriptor = stack.enter_context(_opened(temporary))
                if _lock(descriptor) and os.fstat(descriptor).st_nlink:
                    break
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        temporary.chmod(0o755)
        yield temporary


@contextmanager
def output_directory(path: Path) -> Iterator[None]:
    """Makes `path`, before work whose results it will hold; takes it back if the block fails and left nothing there.

    Raises KinoiseError when it can't be made, or not written to.
    """
    existed = path.exists()
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    try:
        yield
    except BaseException:
        if not existed:
            with suppress(OSError):  # not empty
                path.rmdir()
        raise


@contextmanager
def reserved(path: Path, size: int) -> Iterator[None]:
    """Keeps so many bytes of the disk of the directory `path` for what is written after the block, whatever fills it meanwhile.

    The file that holds them has no name: a killed process leaves nothing. Raises KinoiseError when there is no such room.
    """
    with ExitStack() as stack:
        with disk_errors(path):
            file = stack.enter_context(tempfile.TemporaryFile(dir=path))
            os.posix_fallocate(file.fileno(), 0, size)
        yield


@contextmanager
def claimed(path: Path, doing: str, waiting: Callable[[], None] | None = None) -> Iterator[int]:
    """Keeps other processes that claim the directory `path` out during the block; the kernel ends it when the process ends.

    Yields the directory's descriptor, which stays what it was when `path` is renamed or made anew meanwhile.

    Args:
        doing: what the other one does there, for the error: "trains".
        waiting: called once when another process has it, which is waited for then; None waits as long as PATIENCE says, and
            makes the directory anew if the other process took it back.

    Raises KinoiseError when another process has it, and it is not waited for.
    """
    with ExitStack() as stack:
        if waiting is None:
            descriptor = stack.enter_context(_awaited(path, doing))
        else:
            descriptor = stack.enter_context(_opened(path))
            if not _lock(descriptor):
                waiting()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor


@contextmanager
def _awaited(path: Path, doing: str) -> Iterator[int]:
    """The claimed directory's descriptor."""
    until = time.monotonic() + float(os.environ.get(PATIENCE, "0"))
    with ExitStack() as stack:
        while True:
            descriptor = stack.enter_context(_opened(path))
            while not _lock(descriptor):
                if time.monotonic() >= until:
                    raise KinoiseError(f"{path}: another process {doing} there. Wait for it, or choose another out=.")
                time.sleep(PAUSE_S)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor)):
                break
            with disk_errors(path):
                path.mkdir(parents=True, exist_ok=True)
        yield descriptor


@contextmanager
def _opened(path: Path, flags: int = 0) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether no other process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def clear(*paths: Path) -> None:
    """Removes what killed processes left of `write_file` and `new_directory`. For whoever has claimed the folder of `paths`."""
    for path in paths:
        for left in _left(path.parent, f".{path.name}.", path.suffix):
            if left.is_file() and not left.is_symlink():
                left.unlink()
        _remove_unfinished(path)


def _unfinished(path: Path) -> str:
    return f".{path.name}.unfinished-{socket.gethostname()}-"


def _remove_unfinished(path: Path) -> None:
    for left in _left(path.parent, f".{path.name}.unfinished-", any_host=True):
        with suppress(OSError), _opened(left, os.O_DIRECTORY | os.O_NOFOLLOW) as descriptor:
            own = left.name.startswith(_unfinished(path))
            if _lock(descriptor) and (own or _settled(left)):
                shutil.rmtree(left, ignore_errors=True)


def _settled(folder: Path) -> bool:
    """Whether nothing in it changed for ANOTHERS_S."""
    changes = [item.lstat().st_mtime for item in (folder, *folder.rglob("*"))]
    return time.time() - max(changes) > ANOTHERS_S


def _left(folder: Path, prefix: str, suffix: str = "", any_host: bool = False) -> list[Path]:
    """What is in `folder` under names that `tempfile` makes of these, with a machine's name between them or without."""
    name = re.compile(re.escape(prefix) + ("(.+)-" if any_host else "") + "[a-z0-9_]{8}" + re.escape(suffix))
    return [item for item in folder.iterdir() if name.fullmatch(item.name)] if folder.is_dir() else []


def link(path: Path, target: str) -> None:
    """Points the symbolic link `path` at `target`, replacing an older link in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with disk_errors(path):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        os.replace(temporary, path)
        sync(path.parent)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
