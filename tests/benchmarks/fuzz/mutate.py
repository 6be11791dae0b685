"""Hostile inputs by a seed: valid files with bytes, tokens or values replaced, and pickles made of operations."""

from __future__ import annotations

import io
import json
import pickle
import random
import re
import zipfile
from typing import Any

RAW = "\x00raw:"
"""Beginning of a string in JSON that stands for the text after it, without quotes."""

NUMBERS = ("-1", "0", "1e999", "NaN", "-Infinity", "9" * 25, "9" * 5000, "1000000", "0.5", "-0.0", "4294967296", "true")
TEXTS = (
    "",
    "\x1b[2J\x9b31m",
    "x" * 20_000,
    "~nosuchuser/x",
    "../../etc",
    "\u202eabc",
    "a\nb",
    "\ud800",
    "NaN",
    "/dev/zero",
)
OPERATIONS = [bytes([value]) for value in vars(pickle).values() if isinstance(value, int) and value < 256] + [
    value for name, value in vars(pickle).items() if name.isupper() and isinstance(value, bytes) and len(value) == 1
]
GLOBALS = (
    "torch._utils _rebuild_tensor_v2",
    "torch FloatStorage",
    "collections OrderedDict",
    "numpy ndarray",
    "numpy dtype",
    "numpy._core.multiarray scalar",
    "torch.nn Module",
    "os system",
    "datetime date",
    "pathlib PosixPath",
    "torch._utils _rebuild_sparse_tensor",
    "torch._utils _rebuild_wrapper_subclass",
    "copyreg _reconstructor",
)


def mutate(content: bytes, draw: random.Random) -> bytes:
    """Return a file made of a valid one, by a way that fits it or by its bytes alone."""
    ways = [_bytes, _bytes]
    if content[:2] == b"PK":
        ways += [_archive] * 4
    elif content[8:9] == b"{" and int.from_bytes(content[:8], "little") < len(content):
        ways += [_safetensors] * 4
    elif content[:1] in (b"{", b"["):
        ways += [_json] * 4 + [_tokens]
    elif content[:1] == b"\x80":
        ways += [lambda raw, draw: _pickle(draw)] * 3
    elif content.isascii():
        ways += [_tokens] * 4
    return draw.choice(ways)(content, draw)


def _bytes(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8))):
        place = draw.randrange(len(changed) + 1) if draw.random() < 0.5 else draw.randrange(min(200, len(changed)) + 1)
        way = draw.randrange(5)
        if way == 0:
            changed[place : place + 1] = bytes([draw.randrange(256)])
        elif way == 1:
            changed[place : place + draw.choice((1, 2, 4, 8))] = draw.choice(
                (b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f")
            )
        elif way == 2:
            del changed[place : place + draw.choice((1, 16, 1000))]
        elif way == 3:
            changed[place:place] = changed[place : place + draw.choice((1, 16, 300))] * draw.choice((1, 2, 50))
        else:
            del changed[place:]
    return bytes(changed)


def _tokens(content: bytes, draw: random.Random) -> bytes:
    text = content.decode("utf-8", "replace")
    tokens = list(re.finditer(r'"[^"\n]*"|-?\d[\d.e+-]*|\w+|[\[\]{}:=,]', text))
    for match in sorted(draw.sample(tokens, min(len(tokens), draw.choice((1, 1, 3)))), key=lambda m: -m.start()):
        new = draw.choice(
            (*NUMBERS, *map(json.dumps, TEXTS), "[" * draw.choice((1, 5000)), "{", "]", "a." * 3000, "", ",")
        )
        text = text[: match.start()] + new + text[match.end() :]
    return text.encode("utf-8", "surrogatepass")


def _value(draw: random.Random, depth: int = 0) -> Any:
    way = draw.randrange(7)
    if way == 0:
        return RAW + draw.choice(NUMBERS)
    if way == 1:
        return draw.choice(TEXTS)
    if way == 2:
        return draw.choice((None, True, [], {}, [[]], -1, 0.5))
    if way == 3:
        return RAW + draw.choice(("[" * 50 + "]" * 50, "[" * 2000 + "]" * 2000, '{"a":' * 90 + "1" + "}" * 90))
    if way == 4 and depth < 3:
        return [_value(draw, depth + 1) for _ in range(draw.choice((1, 3)))]
    if way == 5 and depth < 3:
        return {draw.choice(("name", "size", "counts", *TEXTS)): _value(draw, depth + 1) for _ in range(2)}
    return draw.choice((1, 2, 1 << 20, 1 << 31, 1 << 62))


def _replace(value: Any, draw: random.Random) -> Any:
    """Replace one node, add one or leave one out."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(list(value))
        changed = dict(value)
        if draw.random() < 0.1:
            del changed[key]
        else:
            changed[key] = _replace(value[key], draw)
        return changed
    if isinstance(value, list) and value and draw.random() < 0.85:
        place = draw.randrange(len(value))
        return [*value[:place], _replace(value[place], draw), *value[place + 1 :]]
    if isinstance(value, str) and value[:1] in "{[" and draw.random() < 0.9:  # JSON inside of metadata
        try:
            return _dump(_replace(json.loads(value), draw))
        except ValueError:
            pass
    return _value(draw)


def _dump(value: Any) -> str:
    text = json.dumps(value)
    return re.sub(r'"\\u0000raw:((?:[^"\\]|\\.)*)"', lambda match: match[1].replace('\\"', '"'), text)


def _json(content: bytes, draw: random.Random) -> bytes:
    value = json.loads(content)
    for _ in range(draw.choice((1, 1, 2))):
        value = _replace(value, draw)
    return _dump(value).encode("utf-8", "surrogatepass")


def _safetensors(content: bytes, draw: random.Random) -> bytes:
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    if draw.random() < 0.7 and "__metadata__" in header:
        header["__metadata__"] = _replace(header["__metadata__"], draw)
    else:
        key = draw.choice(list(header))
        kinds = ("F8_E4M3", "U32", "I64", "F64", "BOOL", "U8", "C64", "F4", "F16")
        if draw.random() < 0.4 and isinstance(header[key], dict) and "dtype" in header[key]:
            header[key] = {**header[key], "dtype": draw.choice(kinds)}
        else:
            header[key] = _replace(header[key], draw)
    if draw.random() < 0.2:
        data = _bytes(data, draw)
    text = _dump(header).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + data


def _archive(content: bytes, draw: random.Random) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            raw = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                raw = _pickle(draw) if draw.random() < 0.3 else _bytes(raw, draw)
            elif draw.random() < 0.1:
                raw = draw.choice((raw[: len(raw) // 2], raw * 2, bytes(5_000_000)))
            new.writestr(entry.filename, raw, draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    return out.getvalue()


def _pickle(draw: random.Random) -> bytes:
    """Return a pickle of operations with arguments of the right form."""
    content = bytearray(b"\x80\x04")
    for number in range(draw.choice((3, 10, 60, 400))):
        way = draw.randrange(12)
        if way < 5:
            content += draw.choice((b"]", b"}", b"(", b")", b"N", b"\x88", b"\x8f", b"K\x01", b"J\xff\xff\xff\x7f"))
        elif way < 7:
            content += draw.choice((b"h", b"q")) + bytes([draw.randrange(number + 1) % 256])
        elif way == 7:
            module, name = draw.choice(GLOBALS).split()
            content += f"c{module}\n{name}\n".encode()
        elif way == 8:
            text = draw.choice(
                ("model", "state_dict", "w", "storage", "resolve", "_modules", "i8", "<", "x" * 300)
            ).encode()
            content += b"X" + len(text).to_bytes(4, "little") + text
        elif way == 9:
            content += draw.choice((b"\x8e", b"\x96", b"\x95", b"\x8d")) + draw.randrange(1 << 63).to_bytes(8, "little")
        elif way == 10:
            content += b"\x8b" + draw.choice((4, 1 << 30)).to_bytes(4, "little") + b"\xff" * 4
        else:
            content += draw.choice(OPERATIONS) + draw.randbytes(draw.choice((0, 0, 1, 4)))
        if draw.random() < 0.4:
            content += draw.choice(
                (b"a", b"e", b"s", b"u", b"R", b"b", b"t", b"\x85", b"\x86", b"\x81", b"2", b"l", b"d", b"Q")
            )
    return bytes(content + b".")
