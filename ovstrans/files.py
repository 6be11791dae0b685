"""Files: atomic writes, JSON and safetensors, with errors that say what to do.

Every file is written under a temporary name beside its destination, flushed to disk and renamed. A reader never sees
half a file, and a process killed on the way leaves the previous one as it was.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ovstrans.errors import InputError, MissingFileError
from ovstrans.parsing import LARGEST_JSON, LARGEST_TOML, parse_json, parse_toml, read_text

if TYPE_CHECKING:
    import torch

LARGEST_HEADER = 16 << 20
"""Length, in bytes, from which the first bytes of a file are no header of a safetensors file."""

CONTENT = "content_sha256"
"""Entry of a safetensors file's metadata with the hash of all the rest, see `content_sha256`."""

_CHUNK = 2**20
_FULL = 1 << 20
"""Free bytes below which a disk counts as full."""

_PLAIN_TYPES = ("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")

_SPECIAL = {
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}

OUTPUT_DIR = Path("ovstrans-out")
"""Default folder of the commands: each writes into it, and looks there for what an earlier one wrote."""


def check_output(path: Path | str, *, force: bool = False, directory: bool = False, option: str = "out") -> Path:
    """Check, before the work, that its result can be written.

    Args:
        path: The file or folder to write.
        force: Allow a file, or a folder that is not empty, to be replaced.
        directory: Expect a folder.
        option: Name of the parameter that gave the path, for messages.

    Returns:
        The path.

    Raises:
        InputError: The path exists (without `force`), is a folder where a file is meant or the reverse, is a device,
            or nothing can be written in its folder, or in the nearest parent that exists.
    """
    path = Path(path)
    another = f"give another `{option}`"
    if path.exists() and path.is_dir() != directory:
        kind, other = ("folder", "file") if directory else ("file", "folder")
        raise InputError(f"{path}: a {other} is in the way of the {kind} to write; {another}")
    if path.exists() and not directory and not path.is_file():
        raise InputError(f"{path}: not an ordinary file, and would be replaced by one; {another}")
    occupied = path.exists() and (not directory or any(path.iterdir()))
    if occupied and not force:
        raise InputError(f"{path}: exists already; {another}, or `force=True` to replace it")
    parent = path if directory and path.exists() else path.parent
    while not parent.exists():
        if parent.parent == parent:
            break
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"{path}: {parent} is not a folder; {another}")
    try:  # permissions alone do not tell: root has all of them, even where no file can be made
        with tempfile.NamedTemporaryFile(dir=parent, prefix=".ovstrans-"):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path}: nothing can be written in {parent} ({reason}); {another}") from error
    return path


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside `path`, and rename it onto `path` when the block ends without an error.

    Args:
        path: The file to write. Missing parent folders are made.

    Yields:
        The temporary path. It has the suffix of `path`, so that writers which choose a format by it work.

    Raises:
        InputError: The folder cannot be made or written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    os.close(handle)
    temporary = Path(name)
    before = "; what was there before is unchanged" if path.exists() else ""
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except InputError:  # a missing file that the block wanted to read is an OSError too
        raise
    except Exception as error:
        reason = storage_fault(error, path.parent)
        if not reason:
            raise
        raise InputError(f"{path}: cannot be written ({reason}){before}") from error
    finally:
        with contextlib.suppress(OSError):  # of a file system that went away: the first error is the one to tell
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def appending(path: Path | str) -> Iterator[TextIO]:
    """Open a text file to add to its end; InputError if what the block writes cannot be stored."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as handle:
            yield handle
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); its earlier lines remain") from error


def storage_fault(error: BaseException, folder: Path | None = None) -> str:
    """Return why the system did not store something, such as "No space left on device"; "" for any other error.

    Torch, safetensors, pillow and matplotlib report a full disk each in an error of its own.

    Args:
        error: What a writer raised.
        folder: Where it wrote: torch does not say why, but a full disk tells.
    """
    if isinstance(error, OSError):
        return str(error.strerror or error)
    text = str(error)
    number = re.search(r"\bos error (\d+)\b|\[Errno (\d+)\]", text)
    if number:
        return os.strerror(int(number[1] or number[2]))
    known = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO)
    reason = next((words for words in map(os.strerror, known) if words in text), "")
    if reason or not re.search(r"unexpected pos \d+ vs|file write failed|PytorchStreamWriter failed", text):
        return reason
    inner = error.__cause__ or error.__context__
    if isinstance(inner, OSError):
        return str(inner.strerror or inner)
    with contextlib.suppress(OSError):
        if folder is not None and shutil.disk_usage(folder).free < _FULL:
            return os.strerror(errno.ENOSPC)
    return "the system took only a part of it; is the disk full?"


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_text(value: Any) -> str:
    """Return a value as JSON, indented by one space.

    Raises:
        ValueError: The value holds NaN or infinity; JSON has neither, a missing value is null.
    """
    return json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON atomically; see `json_text`."""
    write_text(path, json_text(value))


def missing_file_message(path: Path | str) -> str:
    """Return the error message for a missing file; it says so if the path is a dangling symbolic link."""
    path = Path(path)
    if path.is_symlink():
        return f"{path}: no such file, only a link to {path.readlink()}; put the file there, or remove the link"
    return f"{path}: no such file"


def refuse_missing(messages: Sequence[str]) -> None:
    """Raise MissingFileError if there are messages about missing files.

    The error is the first message and the number of others. Without messages nothing happens.
    """
    if messages:
        more = f" (and {len(messages) - 1} more)" if len(messages) > 1 else ""
        raise MissingFileError(messages[0] + more)


def expand_home(path: Path | str) -> Path:
    """Replace a leading `~` or `~USER` by that user's home folder; InputError if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: no home folder of that user is known; write the whole path") from error


def existing_file(path: Path | str) -> Path:
    """Return the path if a readable, ordinary file is there.

    Raises:
        MissingFileError: Nothing is there.
        InputError: It is a folder, a pipe, a socket or a device, which might keep a reader waiting for ever, or may
            not be read.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(missing_file_message(path)) from None
    except (OSError, ValueError) as error:  # no permission, a loop of links, a name too long or with a null
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{path}: is a folder, a file is needed")
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _SPECIAL.items() if test(mode)), "a special file")
        raise InputError(f"{path}: is {kind}, an ordinary file is needed; save what it gives to a file first")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: no permission to read it")
    return path


def hash_file(path: Path | str) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _family(schema: object) -> str:
    """Return the name of a schema without its version."""
    return str(schema).partition("/")[0]


def _other_kind(path: Path, needed: str) -> str:
    """Return the error message for a file of ours, or a known kind, in the place of another; "" for any other file."""
    from ovstrans import file_kinds

    kind = file_kinds.recognize(path)
    return "" if kind is None or not kind.remedy or "damaged" in kind.name else file_kinds.refusal(path, needed)


def read_json(path: Path | str, schema: str | None = None, *, limit: int = LARGEST_JSON) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        schema: Expected value of the object's "schema" entry. None reads any JSON.
        limit: Most bytes that it may have.

    Raises:
        InputError: The file is missing, too long, is not JSON within the bounds of `parsing`, or has another schema.
    """
    path = existing_file(path)
    try:
        value = parse_json(read_text(path, limit))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(_other_kind(path, "JSON") or f"{path}: not valid JSON ({error})") from error
    if schema is not None:
        found = value.get("schema") if isinstance(value, dict) else None
        if found != schema:
            other = _other_kind(path, f"a file of {schema}") if _family(found) != _family(schema) else ""
            raise InputError(other or f"{path}: its schema is {found!r}, {schema!r} is needed")
    return value


def read_toml(path: Path | str) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        InputError: The file is missing or not valid TOML.
    """
    path = existing_file(path)
    try:
        return parse_toml(read_text(path, LARGEST_TOML))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(_other_kind(path, "TOML") or f"{path}: not valid TOML ({error})") from error


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> hashlib._Hash:
    """Hash tensors with SHA-256, in sorted order of their names.

    Each adds its name (UTF-8), its dtype ("float32"), its shape (as a JSON list) and its raw little-endian bytes in C
    order.

    Returns:
        The hash, to which more can be added.
    """
    import torch

    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(key.encode())
        digest.update(str(tensor.dtype).removeprefix("torch.").encode())
        digest.update(json.dumps(list(tensor.shape)).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest


def content_sha256(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """Hash the content of a safetensors file: its tensors (`hash_tensors`), then its other metadata as sorted JSON.

    Args:
        tensors: Tensors by name.
        metadata: Plain strings by name; the entry `CONTENT` does not count.
    """
    digest = hash_tensors(tensors)
    digest.update(json.dumps({key: metadata[key] for key in sorted(metadata) if key != CONTENT}).encode())
    return digest.hexdigest()


def write_tensors(path: Path | str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically and reproducibly: equal contents give equal bytes.

    The hash of its content is among its metadata, as `CONTENT`.

    Args:
        path: The file to write.
        tensors: Tensors by name, of any layout and on any device. They may share memory: each is written whole, in C
            order.
        metadata: Plain strings by name.

    Raises:
        InputError: The file cannot be written.
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
    plain[CONTENT] = content_sha256(own, plain)
    with atomic_path(path) as temporary:
        save_file(own, temporary, metadata=plain)
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file in place.

    The header is 8 bytes of length, JSON, and spaces to fill up. The library's writer puts the metadata into another
    order at each call; sorted, equal metadata are equal bytes.
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


def safetensors_header(start: bytes) -> int:
    """Return the length of the header of a safetensors file by its first nine bytes; 0 for another file."""
    length = int.from_bytes(start[:8], "little")
    return length if start[8:9] == b"{" and 2 <= length < LARGEST_HEADER else 0


def read_format(path: Path | str) -> str:
    """Return the entry `format` of the metadata of a safetensors file; "" without it, or of another file.

    Raises:
        InputError: The file is missing, or is a damaged safetensors file.
    """
    path = existing_file(path)
    with path.open("rb") as handle:
        start = handle.read(9)
    return read_metadata(path).get("format", "") if safetensors_header(start) else ""


def read_metadata(path: Path | str) -> dict[str, str]:
    """Read the metadata of a safetensors file, without the hash of its content.

    Raises:
        InputError: The file is missing, or its header and its length do not agree.
    """
    from safetensors import safe_open

    path = existing_file(path)
    try:
        with path.open("rb") as start:
            length = int.from_bytes(start.read(8), "little")
        if LARGEST_HEADER <= length <= path.stat().st_size:
            raise ValueError(f"a header of {length:,} bytes, at most {LARGEST_HEADER:,} are read")
        with safe_open(path, framework="np") as handle:
            return {key: text for key, text in (handle.metadata() or {}).items() if key != CONTENT}
    except Exception as error:  # of the library's parser
        raise InputError(_describe_damage(path, error)) from error


def content_is_intact(path: Path | str) -> bool | None:
    """Return whether a safetensors file still has the content that it was written with; None if it has no hash.

    Raises:
        InputError: As `read_tensors`.
    """
    from safetensors import safe_open

    tensors, metadata = read_tensors(path)
    with safe_open(path, framework="np") as handle:
        recorded = (handle.metadata() or {}).get(CONTENT)
    return None if recorded is None else bool(recorded == content_sha256(tensors, metadata))


def read_tensors(path: Path | str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read all tensors of a safetensors file, onto the CPU, and its metadata as `read_metadata` does.

    Raises:
        InputError: The file is missing or damaged, or holds numbers of a type that torch cannot compute with.
    """
    from safetensors.torch import load_file

    metadata = read_metadata(path)
    try:
        tensors = load_file(path)
    except Exception as error:  # the library has its own error; torch refuses types and shapes with any
        raise InputError(_describe_damage(path, error)) from error
    require_plain_types(tensors, str(path))
    return tensors, metadata


def require_plain_types(tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise InputError, beginning with `where`, for a tensor that is sparse, on no device, or of an unusual type.

    The usual types are floats of 16, 32 and 64 bits, whole numbers with a sign, bytes and booleans. Torch stores others
    (floats of 8 and 4 bits, unsigned numbers, complex ones), but lacks most operations for them.
    """
    import torch

    for key, tensor in tensors.items():
        kind = str(tensor.dtype).removeprefix("torch.")
        if kind.startswith(("float8_", "float6_", "float4_")):
            raise InputError(
                f"{where}: holds quantized weights ({kind}: {key}); give the weights that they were made from"
            )
        if kind not in _PLAIN_TYPES:
            raise InputError(f"{where}: {key} holds numbers of the type {kind}; save it as float32 or int64")
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested:
            raise InputError(f"{where}: {key} is no dense tensor with values; save it as one")


def _describe_damage(path: Path | str, error: Exception) -> str:
    """Return the error message for a file that is no intact safetensors file."""
    from ovstrans import file_kinds

    with Path(path).open("rb") as handle:
        start = handle.read(9)
    if not safetensors_header(start) and file_kinds.recognize(path) is not None:
        return file_kinds.refusal(path, "a safetensors file")
    reason = file_kinds.truncation(path) or error
    return f"{path}: not an intact safetensors file ({reason}); copy or download it again, or make it anew"
