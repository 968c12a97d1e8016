"""Miniatures of the formats that benchmarks come in: a few rows, images of one color each."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
COLORS = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


def png(color: str = "red", size: tuple[int, int] = (24, 16)) -> bytes:
    """An encoded image of one color."""
    held = io.BytesIO()
    Image.new("RGB", size, COLORS[color]).save(held, "PNG")
    return held.getvalue()


def base64_png(color: str = "red", size: tuple[int, int] = (24, 16)) -> str:
    return base64.b64encode(png(color, size)).decode()


def color_of(image: Image.Image) -> str:
    """Name of an image's first pixel."""
    return next(name for name, value in COLORS.items() if value == image.getpixel((0, 0)))


def write_table(path: Path, header: str, *rows: list[str] | bytes, separator: str = "\t") -> Path:
    """A table with quotes where they are needed; rows of bytes stand as they are."""
    lines = [separator.join(header.split()).encode()]
    for row in rows:
        lines.append(
            row if isinstance(row, bytes) else separator.join(_quoted(cell, separator) for cell in row).encode()
        )
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def write_shard(path: Path, columns: dict[str, list[Any]], *, row_group_size: int = 2, **images: list[Any]) -> Path:
    """A parquet file; columns given by keyword hold images as Hugging Face datasets store them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held: dict[str, Any] = {name: pa.array(values) for name, values in columns.items()}
    for name, values in images.items():
        several = any(isinstance(value, list) for value in values)
        held[name] = pa.array(values, pa.list_(IMAGE) if several else IMAGE)
    pq.write_table(pa.table(held), path, row_group_size=row_group_size)
    return path


def stored(color: str) -> dict[str, Any]:
    """An image as a cell of a shard."""
    return {"bytes": png(color), "path": f"{color}.png"}


def write_json(path: Path, held: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(held))
    return path


def write_lines(path: Path, *records: dict[str, Any] | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def write_images(folder: Path, **colors: str) -> Path:
    """Files of one color each, by stem, with the ending .jpg."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, color in colors.items():
        Image.new("RGB", (24, 16), COLORS[color]).save(folder / f"{stem}.jpg", "PNG")  # lossless under any name
    return folder


def _quoted(cell: str, separator: str) -> str:
    if any(sign in cell for sign in (separator, "\n", '"')):
        return '"' + cell.replace('"', '""') + '"'
    return cell
