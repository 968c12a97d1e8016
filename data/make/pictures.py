"""The pictures that the demo models are trained and asked on: a short text, a few colored shapes, or both.

A picture is composed first (what stands where, in which color) and painted second. Questions need the composition
only, so that answers can be counted over many thousand pictures without painting one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 64  # pixels
CHARACTERS = "ACDEFHJKLMNPRTUVXY234679"  # no two of them look alike at 14 points (no O and 0, no B and 8)
COLORS = {
    "red": (220, 30, 30),
    "green": (30, 170, 40),
    "blue": (40, 70, 230),
    "yellow": (235, 215, 30),
    "purple": (150, 40, 190),
    "orange": (245, 135, 20),
    "white": (250, 250, 250),
    "cyan": (40, 210, 220),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
CONTENTS = ("text", "scene", "mixed")

# matplotlib brings these fonts along, so they are the same on every machine
FONTS = ("DejaVuSans-Bold", "DejaVuSans", "DejaVuSansMono-Bold", "DejaVuSerif-Bold")
NARROWEST_FONT = "DejaVuSans"
SMALLEST_FONT_SIZE = 14
COLOR_JITTER = 18.0
NOISE = 4.0
PLACEMENT_TRIES = 20
SUPERSAMPLING = 4

RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    def is_apart(self, other: Box) -> bool:
        """Tell whether at least one pixel column or row lies between the two."""
        beside = self.left > other.right or other.left > self.right
        return beside or self.top > other.bottom or other.top > self.bottom


@dataclass(frozen=True)
class Text:
    """A string with one box a character."""

    string: str
    color: str
    rgb: RGB
    font: str
    font_size: int
    boxes: tuple[Box, ...]

    @property
    def box(self) -> Box:
        """The box of the whole string."""
        first, last = self.boxes[0], self.boxes[-1]
        return Box(first.left, first.top, last.right, last.bottom)


@dataclass(frozen=True)
class Shape:
    """A filled shape in a square box."""

    name: str
    color: str
    rgb: RGB
    box: Box


@dataclass(frozen=True)
class Picture:
    """What a picture shows, before it is painted."""

    background: RGB
    text: Text | None
    shapes: tuple[Shape, ...]


def compose_picture(generator: np.random.Generator, content: str, lengths: tuple[int, int] = (2, 4)) -> Picture:
    """Draw what a picture shows.

    Args:
        generator: source of randomness.
        content: "text", "scene" (one to four shapes) or "mixed" (a smaller text and one or two smaller shapes).
        lengths: shortest and longest text, in characters.
    """
    gray = generator.integers(0, 70)
    background = _as_rgb(gray + generator.uniform(-12, 12, 3))
    text = None
    if content != "scene":
        text = _compose_text(generator, lengths, largest=24 if content == "text" else 18)
    shapes: tuple[Shape, ...] = ()
    if content != "text":
        most, largest = (4, 22) if content == "scene" else (2, 16)
        shapes = _compose_shapes(generator, most, largest, taken=[] if text is None else [text.box])
    return Picture(background, text, shapes)


def paint(picture: Picture, generator: np.random.Generator) -> np.ndarray:
    """Paint a picture; the generator adds the grain.

    Returns:
        (64, 64, 3) uint8 pixels.
    """
    pixels = np.empty((SIDE, SIDE, 3), np.float32)
    pixels[:] = picture.background
    if picture.text is not None:
        text = picture.text
        for character, box in zip(text.string, text.boxes, strict=True):
            _blend(pixels, _glyph(text.font, text.font_size, character), box, text.rgb)
    for shape in picture.shapes:
        _blend(pixels, _stencil(shape.name, shape.box.right - shape.box.left), shape.box, shape.rgb)
    pixels += generator.normal(0, NOISE, (SIDE, SIDE, 1)).astype(np.float32)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _compose_text(generator: np.random.Generator, lengths: tuple[int, int], largest: int) -> Text:
    n_characters = int(generator.integers(lengths[0], lengths[1] + 1))
    string = "".join(CHARACTERS[i] for i in generator.integers(0, len(CHARACTERS), n_characters))
    font = FONTS[generator.integers(len(FONTS))]
    font_size = int(generator.integers(SMALLEST_FONT_SIZE, largest + 1))
    gap = int(generator.integers(1, 4))
    while (width := _text_width(string, font, font_size, gap)) > SIDE - 2:
        font_size -= 1
        if font_size < SMALLEST_FONT_SIZE:
            font, font_size = NARROWEST_FONT, SMALLEST_FONT_SIZE
        gap = int(generator.integers(1, 4))
    height = _glyph(font, font_size, string[0]).shape[0]
    left, top = int(generator.integers(1, SIDE - width)), int(generator.integers(1, SIDE - height))
    boxes = []
    for character in string:
        right = left + _glyph(font, font_size, character).shape[1]
        boxes.append(Box(left, top, right, top + height))
        left = right + gap
    color, rgb = _draw_color(generator)
    return Text(string, color, rgb, font, font_size, tuple(boxes))


def _compose_shapes(generator: np.random.Generator, most: int, largest: int, taken: list[Box]) -> tuple[Shape, ...]:
    """Place up to `most` shapes; one that finds no free place after some tries is left out."""
    shapes: list[Shape] = []
    for _ in range(generator.integers(1, most + 1)):
        for _ in range(PLACEMENT_TRIES):
            size = int(generator.integers(11, largest + 1))
            left, top = (int(start) for start in generator.integers(0, SIDE - size + 1, 2))
            box = Box(left, top, left + size, top + size)
            if all(box.is_apart(other) for other in taken):
                name = SHAPES[generator.integers(len(SHAPES))]
                shapes.append(Shape(name, *_draw_color(generator), box))
                taken = [*taken, box]
                break
    return tuple(shapes)


def _draw_color(generator: np.random.Generator) -> tuple[str, RGB]:
    name = list(COLORS)[generator.integers(len(COLORS))]
    jittered = np.array(COLORS[name]) + generator.uniform(-COLOR_JITTER, COLOR_JITTER, 3)
    return name, _as_rgb(np.clip(jittered, 0, 255))


def _as_rgb(values: np.ndarray) -> RGB:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _text_width(string: str, font: str, font_size: int, gap: int) -> int:
    return sum(_glyph(font, font_size, character).shape[1] for character in string) + gap * (len(string) - 1)


def _blend(pixels: np.ndarray, stencil: np.ndarray, box: Box, rgb: RGB) -> None:
    """Lay a color over the box of `pixels`, in place, as far as the stencil is opaque."""
    region = pixels[box.top : box.bottom, box.left : box.right]
    region += stencil[..., None] * (np.array(rgb, np.float32) - region)


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    # the other layout engine is there on some machines only
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


@cache
def _line_extent(name: str, size: int) -> tuple[int, int]:
    """Top and bottom of the line: every character of a font is painted on the same baseline."""
    boxes = [_font(name, size).getbbox(character) for character in CHARACTERS]
    return int(min(box[1] for box in boxes)), int(max(box[3] for box in boxes))


@cache
def _glyph(name: str, size: int, character: str) -> np.ndarray:
    """One character, cropped to its width: (height, width) float32 opacity in [0, 1]."""
    font = _font(name, size)
    top, bottom = _line_extent(name, size)
    left, _, right, _ = (int(edge) for edge in font.getbbox(character))
    mask = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(mask).text((-left, -top), character, fill=255, font=font)
    return np.asarray(mask, np.float32) / 255


@cache
def _stencil(name: str, size: int) -> np.ndarray:
    """One shape: (size, size) float32 opacity in [0, 1], painted larger and averaged down for smooth edges."""
    side = size * SUPERSAMPLING
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    if name == "circle":
        draw.ellipse((0, 0, side - 1, side - 1), fill=255)
    elif name == "square":
        draw.rectangle((side * 0.06, side * 0.06, side * 0.94, side * 0.94), fill=255)
    elif name == "triangle":
        draw.polygon([(side / 2, 0), (side - 1, side * 0.92), (0, side * 0.92)], fill=255)
    elif name == "cross":
        draw.rectangle((side * 0.34, 0, side * 0.66, side), fill=255)
        draw.rectangle((0, side * 0.34, side, side * 0.66), fill=255)
    else:
        draw.polygon(_star_corners(side), fill=255)
    return np.asarray(mask.resize((size, size), Image.Resampling.BOX), np.float32) / 255


def _star_corners(side: int) -> list[tuple[float, float]]:
    """Ten corners, outer and inner by turns, from the top clockwise."""
    corners = []
    for corner in range(10):
        radius = side / 2 * (1.0 if corner % 2 == 0 else 0.42)
        angle = -np.pi / 2 + corner * np.pi / 5
        corners.append((float(side / 2 + radius * np.cos(angle)), float(side / 2 + radius * np.sin(angle))))
    return corners
