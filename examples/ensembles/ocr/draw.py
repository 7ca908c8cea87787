"""Draws the pictures of this example from the lines in expected.json.

Owns their looks: fonts, sizes, angles, and what a camera would spoil. The same run gives the same pictures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

HERE = Path(__file__).resolve().parent
FONTS = HERE / "fonts"
IMAGES = HERE / "images"

Colour = tuple[int, int, int]
WHITE, BLACK, INK = (255, 255, 255), (0, 0, 0), (25, 30, 60)


def font(name: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font of this example by its file name, or Pillow's own sans serif, under the name of "sans"."""
    if name == "sans":
        return ImageFont.load_default(size)
    return ImageFont.truetype(FONTS / name, size)


def sheet(width: int, height: int, colour: Colour = WHITE) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def write(
    page: Image.Image, at: tuple[int, int], text: str, name: str, size: int, colour: Colour = BLACK
) -> None:
    ImageDraw.Draw(page).text(at, text, fill=colour, font=font(name, size))


def paste_turned(
    page: Image.Image, centre: tuple[int, int], text: str, name: str, size: int, degrees: float
) -> None:
    """Writes black text about the centre, turned counter-clockwise by the degrees."""
    left, top, right, bottom = font(name, size).getbbox(text)
    mask = Image.new("L", (round(right - left) + 20, round(bottom - top) + 20))
    ImageDraw.Draw(mask).text((10 - left, 10 - top), text, fill=255, font=font(name, size))
    mask = mask.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    page.paste(BLACK, (centre[0] - mask.width // 2, centre[1] - mask.height // 2), mask)


def letter(lines: Sequence[str]) -> Image.Image:
    page = sheet(900, 640)
    looks = [("serif_bold.otf", 44), *[("serif.ttf", 32)] * 3, ("serif_italic.ttf", 32), ("sans", 36)]
    for row, (text, (name, size)) in enumerate(zip(lines, looks, strict=True)):
        write(page, (80, 60 + 90 * row), text, name, size)
    return page


def receipt(lines: Sequence[str]) -> Image.Image:
    page = sheet(520, 560, (250, 248, 240))
    first, second, *goods, last = lines
    write(page, (130, 30), first, "mono_bold.ttf", 36)
    write(page, (110, 100), second, "mono.ttf", 28)
    for row, (name, price) in enumerate(zip(goods[::2], goods[1::2], strict=True)):
        write(page, (40, 180 + 70 * row), name, "mono.ttf", 28)
        write(page, (390, 180 + 70 * row), price, "mono.ttf", 28)
    write(page, (150, 480), last, "mono.ttf", 28)
    return page


def poster(lines: Sequence[str]) -> Image.Image:
    page = sheet(1100, 700, (20, 60, 110))
    looks = [("serif_bold.otf", 110, (255, 220, 90)), ("sans", 76, WHITE), ("serif_italic.ttf", 64, WHITE)]
    for row, (text, (name, size, colour)) in enumerate(zip(lines, looks, strict=True)):
        write(page, (70, 80 + 200 * row), text, name, size, colour)
    return page


def tilted(lines: Sequence[str]) -> Image.Image:
    page = sheet(900, 600)
    for row, (text, name) in enumerate(zip(lines, ("sans", "serif.ttf", "mono.ttf"), strict=True)):
        write(page, (160, 140 + 110 * row), text, name, 42)
    return page.rotate(12, Image.Resampling.BICUBIC, expand=True, fillcolor=WHITE)


def angles(lines: Sequence[str]) -> Image.Image:
    page = sheet(900, 900)
    looks = [("sans", 70, 30), ("serif_bold.otf", 80, -20), ("mono.ttf", 60, 40), ("serif.ttf", 66, -35)]
    for row, (text, (name, size, degrees)) in enumerate(zip(lines, looks, strict=True)):
        paste_turned(page, (300 + 300 * (row % 2), 140 + 210 * row), text, name, size, degrees)
    return page


def spine(lines: Sequence[str]) -> Image.Image:
    page = sheet(420, 800, (235, 228, 210))
    for column, text in enumerate(lines):
        paste_turned(page, (120 + 170 * column, 400), text, "serif.ttf", 56, -90)
    return page


def small_print(lines: Sequence[str]) -> Image.Image:
    page = sheet(400, 140)
    for row, text in enumerate(lines):
        write(page, (20, 18 + 36 * row), text, "serif.ttf", 20)
    return page


def blank(_lines: Sequence[str]) -> Image.Image:
    return sheet(400, 300)


def upside_down(lines: Sequence[str]) -> Image.Image:
    page = sheet(700, 420)
    for row, text in enumerate(reversed(lines)):
        write(page, (80, 60 + 110 * row), text, "sans", 46)
    return page.transpose(Image.Transpose.ROTATE_180)


def rising(lines: Sequence[str]) -> Image.Image:
    page = sheet(400, 760)
    for column, (text, name) in enumerate(zip(lines, ("sans", "serif.ttf"), strict=True)):
        paste_turned(page, (120 + 160 * column, 380), text, name, 50, 90)
    return page


def photograph(lines: Sequence[str]) -> Image.Image:
    sign = sheet(900, 620, (228, 222, 205))
    ImageDraw.Draw(sign).rectangle((12, 12, 887, 607), outline=INK, width=6)
    looks = [("serif_bold.otf", 72), *[("serif.ttf", 52)] * 3, ("sans", 52)]
    for row, (text, (name, size)) in enumerate(zip(lines, looks, strict=True)):
        write(sign, (80, 50 + 108 * row), text, name, size, INK)
    scene = seen_from(sign, [(190, 130), (1075, 215), (1030, 830), (130, 700)], (1200, 960), (120, 96, 78))
    return photographed(scene, np.random.default_rng(7), noise=9, blur=0.9, light=(0.55, 1.1))


def dusk(lines: Sequence[str]) -> Image.Image:
    board = sheet(760, 420, (24, 28, 34))
    for row, (text, size) in enumerate(zip(lines, (84, 62, 62), strict=True)):
        write(board, (50, 40 + 125 * row), text, "mono_bold.ttf", size, (255, 190, 80))
    scene = seen_from(board, [(120, 190), (930, 100), (960, 560), (150, 600)], (1080, 720), (52, 54, 66))
    return photographed(scene, np.random.default_rng(11), noise=14, blur=1.3, light=(0.9, 0.45))


def seen_from(
    flat: Image.Image, corners: Sequence[tuple[int, int]], size: tuple[int, int], wall: Colour
) -> Image.Image:
    """The flat picture on a wall, its corners (clockwise from the top left) where perspective puts them."""
    width, height = flat.size
    equations, values = [], []
    for (x, y), (u, v) in zip(corners, [(0, 0), (width, 0), (width, height), (0, height)], strict=True):
        equations += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    coefficients = np.linalg.solve(np.array(equations, float), np.array(values, float))
    how = (Image.Transform.PERSPECTIVE, coefficients.tolist(), Image.Resampling.BICUBIC)
    scene = sheet(*size, wall)
    scene.paste(flat.transform(size, *how), mask=Image.new("L", flat.size, 255).transform(size, *how))
    return scene


def photographed(
    scene: Image.Image, random: np.random.Generator, noise: float, blur: float, light: tuple[float, float]
) -> Image.Image:
    """The scene out of focus, lit from one side, with the grain of a sensor."""
    width, height = scene.size
    pixels = np.asarray(scene.filter(ImageFilter.GaussianBlur(blur)), float)
    slope = np.linspace(0, 1, width)[np.newaxis, :] * 0.7 + np.linspace(0, 1, height)[:, np.newaxis] * 0.3
    lit = pixels * (light[0] + (light[1] - light[0]) * slope)[..., np.newaxis]
    grain = random.normal(0, noise, pixels.shape) + random.normal(0, noise / 2, (height, width, 1))
    return Image.fromarray(np.clip(lit + grain, 0, 255).astype(np.uint8))


PAINTERS: tuple[Callable[[Sequence[str]], Image.Image], ...] = (
    letter,
    receipt,
    poster,
    tilted,
    angles,
    spine,
    small_print,
    blank,
    upside_down,
    rising,
    photograph,
    dusk,
)


def main() -> None:
    painters = {painter.__name__: painter for painter in PAINTERS}
    expected = json.loads((HERE / "expected.json").read_text())
    IMAGES.mkdir(exist_ok=True)
    for name, answer in expected.items():
        picture = painters[Path(name).stem](answer["lines"])
        # Of the two formats, only JPEG heeds the quality.
        picture.save(IMAGES / name, quality=85)
    print(f"ocr: drew {len(expected)} pictures in {IMAGES}")


if __name__ == "__main__":
    main()
