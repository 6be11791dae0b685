"""Files: atomic writes, JSON, safetensors, with errors a user can act on.

Every artefact is written to a temporary file beside its destination, flushed and renamed, so a
reader never sees half a file and a kill leaves the previous one untouched.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovstrans.errors import InputError

if TYPE_CHECKING:
    import torch

OUTPUT_DIR = Path("ovstrans-out")
"""Where commands write, and look for what the one before wrote, unless told otherwise."""


def check_output(path: Path | str, *, force: bool = False, directory: bool = False, option: str = "--out") -> Path:
    """Refuse early what could not be written late.

    option: what the user names the path with, for the message. Returns the path. Raises InputError if
    it exists (unless `force`), if it is a directory where a file is meant or the reverse or a device,
    or if nothing can be written in its folder, or in the nearest one that exists.
    """
    path = Path(path)
    if path.exists() and path.is_dir() != directory:
        kind, other = ("folder", "file") if directory else ("file", "folder")
        raise InputError(f"{path}: a {other} is in the way of the {kind} to write; give another {option}")
    if path.exists() and not directory and not path.is_file():
        raise InputError(f"{path}: is no ordinary file, and would be replaced by one; give another {option}")
    occupied = path.exists() and (not directory or any(path.iterdir()))
    if occupied and not force:
        raise InputError(f"{path}: exists already; give another {option}, or --force to replace it")
    parent = path if directory and path.exists() else path.parent
    while not parent.exists():
        if parent.parent == parent:
            break
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"{path}: {parent} is not a folder; give another {option}")
    try:  # permissions alone do not tell: root has all of them, also where nothing can be made
        with tempfile.NamedTemporaryFile(dir=parent, prefix=".ovstrans-"):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: nothing can be written in {parent} ({reason}); give another {option}") from error
    return path


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it when the block ends without an error.

    The temporary name keeps the suffix, so writers that go by it work. Raises InputError where the
    folder cannot be made or written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_text(value: Any) -> str:
    """JSON with an indent of one, and no NaN or infinity (a missing value is null)."""
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON atomically; see `json_text`."""
    write_text(path, json_text(value))


def not_there(path: Path | str) -> str:
    """What to say of a file that is not there, be it that a link of its name is."""
    path = Path(path)
    if path.is_symlink():
        return f"{path}: no such file, only a link to {path.readlink()}; put the file there, or take the link out"
    return f"{path}: no such file"


def refuse_missing(missing: Sequence[str]) -> None:
    """InputError with the first of messages about missing files, and how many more there are; none, no error."""
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(missing[0] + more)


def existing_file(path: Path | str) -> Path:
    """The path, if a readable file is there; InputError otherwise."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder, a file is needed")
    if not path.exists():
        raise InputError(not_there(path))
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: no permission to read it")
    return path


def read_json(path: Path | str, schema: str | None = None) -> Any:
    """Read JSON; with `schema`, refuse an object whose "schema" entry is another one."""
    path = existing_file(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if schema is not None:
        found = value.get("schema") if isinstance(value, dict) else None
        if found != schema:
            raise InputError(f"{path}: its schema is {found!r}, {schema!r} is needed")
    return value


def write_tensors(path: Path | str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, atomically and reproducibly: equal contents give equal bytes.

    Tensors may share memory (each is written whole), be of any layout and on any device; all are
    written in C order. InputError where `path` is unwritable.
    """
    from safetensors.torch import save_file

    seen: set[int] = set()
    own: dict[str, torch.Tensor] = {}
    for key, value in tensors.items():
        value = value.detach().cpu().contiguous()
        address = value.untyped_storage().data_ptr()
        if address in seen or value.numel() * value.element_size() != value.untyped_storage().nbytes():
            value = value.clone()
        seen.add(address)
        own[key] = value
    # A path may hold bytes that are no Unicode; the file must be UTF-8.
    plain = {key: text.encode("utf-8", "backslashreplace").decode() for key, text in metadata.items()}
    with atomic_path(path) as temporary:
        save_file(own, temporary, metadata=plain)
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Rewrite the header of a safetensors file in place: 8 bytes of length, JSON, spaces to fill up.

    The library's writer orders the metadata anew at each call, and sorted they are always the same.
    """
    with path.open("rb+") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > length:
            if not header["__metadata__"]:
                return  # no metadata, nothing to sort
            raise RuntimeError(f"{path}: sorted header does not fit its place")
        handle.seek(8)
        handle.write(text.ljust(length))


def read_metadata(path: Path | str) -> dict[str, str]:
    """The metadata of a safetensors file (also checks that its header and length are sound)."""
    from safetensors import SafetensorError, safe_open

    path = existing_file(path)
    try:
        with safe_open(path, framework="np") as handle:
            return dict(handle.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not an intact safetensors file ({error}); copy or make it again") from error


def read_tensors(path: Path | str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file, on the CPU."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    metadata = read_metadata(path)
    try:
        return load_file(path), metadata
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not an intact safetensors file ({error}); copy or make it again") from error
