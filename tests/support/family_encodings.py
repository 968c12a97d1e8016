"""One prompt of every family, encoded by hand, with its visual tokens' places written down.

Nothing here comes from the project or from a processor. Runs of placeholder ids are laid out one after another; grids
are those runs, cut into rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import family_models as fm
import numpy as np
import torch
from family_models import END, IMAGE, MARK, PATCH, START, VIDEO, VOCABULARY, FamilyCase

TEXT = -1  # in a layout: words
VISUAL = (IMAGE, VIDEO)
Layout = list[tuple[int, int]]


def lay_out(layout: Layout, seed: int = 0) -> tuple[dict[str, torch.Tensor], list[np.ndarray]]:
    """Token ids and their mask, and the positions of every run of visual ids, from (id, length) runs."""
    words = torch.Generator().manual_seed(seed)
    parts, runs, start = [torch.tensor([fm.BEGIN])], [], 1
    for token, length in layout:
        if token == TEXT:
            parts.append(torch.randint(MARK + 1, VOCABULARY, (length,), generator=words))
        else:
            parts.append(torch.full((length,), token))
        if token in VISUAL:
            runs.append(np.arange(start, start + length))
        start += length
    ids = torch.cat(parts)[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, runs


def pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    """Noise."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(100 + seed))


def images(*lead: int, side: int, channels: int = 3) -> torch.Tensor:
    """(*lead, channel, pixel, pixel) noise of side x side patches."""
    return pixels(*lead, channels, side * PATCH, side * PATCH)


def positions(runs: list[np.ndarray]) -> torch.Tensor:
    """(n_visual,) long."""
    return torch.from_numpy(np.concatenate(runs)).long()


def square_cells(leads: list[tuple[int, ...]], unit: int, key: str = "pixel_values") -> Callable[..., Any]:
    """Cells of `unit` x `unit` pixels in the image (or tile, crop, frame) at the leading index of each grid."""

    def cell(grid: int, row: int, column: int) -> tuple[str, Any]:
        place = (slice(row * unit, (row + 1) * unit), slice(column * unit, (column + 1) * unit))
        return key, (*leads[grid], slice(None), *place)

    return cell


def llava_case() -> FamilyCase:
    """Two images with text between them."""
    inputs, runs = lay_out([(TEXT, 2), (IMAGE, 9), (TEXT, 2), (IMAGE, 9), (TEXT, 3)])
    return FamilyCase(
        "llava",
        partial(fm.llava, 3),
        {**inputs, "pixel_values": images(2, side=3)},
        positions(runs),
        tuple(run.reshape(3, 3) for run in runs),
        cells=square_cells([(0,), (1,)], PATCH),
    )


def llava_next_case() -> FamilyCase:
    """A very wide image (of two tiles' rows only the middle one holds image) and a high one, each after its base."""
    wide, high = 9 + 1 * (6 + 1), 9 + 6 * (3 + 1)
    inputs, runs = lay_out([(TEXT, 2), (IMAGE, wide), (TEXT, 2), (IMAGE, high), (TEXT, 3)])
    tiles = {1: (0, 1, (1, 2)), 3: (1, 0, (2, 1))}  # grid: image, rows cut off above, tiles down and across
    bases = square_cells([(0, 0), (), (1, 0)], PATCH)

    def cell(grid: int, row: int, column: int) -> tuple[str, Any]:
        if grid not in tiles:
            return bases(grid, row, column)
        image, above, (_, across) = tiles[grid]
        tile = 1 + (row + above) // 3 * across + column // 3
        return square_cells([(image, tile)], PATCH)(0, (row + above) % 3, column % 3)

    grids, newlines = [], []
    for run, rows, columns in ((runs[0], 1, 6), (runs[1], 6, 3)):
        table = run[9:].reshape(rows, columns + 1)
        grids += [run[:9].reshape(3, 3), table[:, :-1]]
        newlines += table[:, -1].tolist()
    sizes = torch.tensor([[4, 24], [24, 12]])  # height, width
    return FamilyCase(
        "llava_next",
        partial(fm.llava_next, 3),
        {**inputs, "pixel_values": images(2, 3, side=3), "image_sizes": sizes},
        positions(runs),
        tuple(grids),
        tuple(newlines),
        cell,
        ("image_sizes",),
        notes="grids in the order base, tiles of each image; each row of tiles ends in a newline token",
    )


def llava_onevision_case() -> FamilyCase:
    """One wide image: its base, then two tiles with a newline a row."""
    inputs, (run,) = lay_out([(TEXT, 2), (IMAGE, 9 + 3 * 7), (TEXT, 3)])
    table = run[9:].reshape(3, 7)
    base = square_cells([(0, 0)], PATCH)

    def cell(grid: int, row: int, column: int) -> tuple[str, Any]:
        return base(0, row, column) if grid == 0 else square_cells([(0, 1 + column // 3)], PATCH)(0, row, column % 3)

    return FamilyCase(
        "llava_onevision",
        partial(fm.llava_onevision, 3),
        {**inputs, "pixel_values": images(1, 3, side=3), "image_sizes": torch.tensor([[12, 24]])},
        positions([run]),
        (run[:9].reshape(3, 3), table[:, :-1]),
        tuple(table[:, -1].tolist()),
        cell,
        ("image_sizes",),
    )


def llava_onevision_images_case() -> FamilyCase:
    """Two images in one prompt: bases only, each with one newline at its end."""
    inputs, runs = lay_out([(TEXT, 2), (IMAGE, 10), (TEXT, 2), (IMAGE, 10), (TEXT, 3)])
    sizes, count = torch.tensor([[12, 24], [12, 12]]), torch.tensor([2])
    return FamilyCase(
        "llava_onevision-images",
        partial(fm.llava_onevision, 3),
        {**inputs, "pixel_values": images(2, 1, side=3), "image_sizes": sizes, "batch_num_images": count},
        positions(runs),
        tuple(run[:9].reshape(3, 3) for run in runs),
        tuple(int(run[-1]) for run in runs),
        square_cells([(0, 0), (1, 0)], PATCH),
        ("image_sizes", "batch_num_images"),
    )


def llava_onevision_video_case() -> FamilyCase:
    """Two frames, pooled 2 x 2, and one newline after the last."""
    inputs, (run,) = lay_out([(TEXT, 2), (VIDEO, 2 * 9 + 1), (TEXT, 3)])
    return FamilyCase(
        "llava_onevision-video",
        partial(fm.llava_onevision, 6),
        {**inputs, "pixel_values_videos": images(1, 2, side=6)},
        positions([run]),
        tuple(run[9 * f : 9 * f + 9].reshape(3, 3) for f in range(2)),
        (int(run[-1]),),
        square_cells([(0, 0), (0, 1)], 2 * PATCH, "pixel_values_videos"),
    )


def block_cells(grids: list[tuple[int, int]], key: str = "pixel_values") -> Callable[..., Any]:
    """Cells of 2 x 2 patches where the processor orders patches block by block (Qwen)."""
    starts = np.cumsum([0, *(4 * rows * columns for rows, columns in grids)])

    def cell(grid: int, row: int, column: int) -> tuple[str, Any]:
        first = int(starts[grid]) + 4 * (row * grids[grid][1] + column)
        return key, (slice(first, first + 4),)

    return cell


def qwen_patches(n: int) -> torch.Tensor:
    """(patch, channel x 2 frames x pixels) noise."""
    return pixels(n, 3 * 2 * PATCH * PATCH)


def token_kinds(ids: torch.Tensor) -> torch.Tensor:
    """Text 0, image 1, video 2."""
    return (ids == IMAGE).int() + 2 * (ids == VIDEO).int()


def qwen_case(name: str, make: Callable[[], tuple[type, Any]], **changes: Any) -> FamilyCase:
    """A wide and a high image."""
    inputs, runs = lay_out(
        [(TEXT, 2), (START, 1), (IMAGE, 6), (END, 1), (TEXT, 1), (START, 1), (IMAGE, 6), (END, 1), (TEXT, 3)]
    )
    return FamilyCase(
        name,
        make,
        {
            **inputs,
            "mm_token_type_ids": token_kinds(inputs["input_ids"]),
            "pixel_values": qwen_patches(48),
            "image_grid_thw": torch.tensor([[1, 4, 6], [1, 6, 4]]),
        },
        positions(runs),
        (runs[0].reshape(2, 3), runs[1].reshape(3, 2)),
        cells=block_cells([(2, 3), (3, 2)]),
        required=("mm_token_type_ids", "image_grid_thw"),
        **changes,
    )


def qwen_video_case(name: str, make: Callable[[], tuple[type, Any]]) -> FamilyCase:
    """A video of two steps in time (two frames each), one run of tokens."""
    inputs, (run,) = lay_out([(TEXT, 2), (START, 1), (VIDEO, 12), (END, 1), (TEXT, 3)])
    return FamilyCase(
        name,
        make,
        {
            **inputs,
            "mm_token_type_ids": token_kinds(inputs["input_ids"]),
            "pixel_values_videos": qwen_patches(48),
            "video_grid_thw": torch.tensor([[2, 4, 6]]),
            "second_per_grid_ts": torch.tensor([1.0]),
        },
        positions([run]),
        (run[:6].reshape(2, 3), run[6:].reshape(2, 3)),
        cells=block_cells([(2, 3), (2, 3)], "pixel_values_videos"),
        required=("mm_token_type_ids", "video_grid_thw"),
    )


def qwen3_vl_video_case() -> FamilyCase:
    """A video of two steps in time, each between its own timestamp and markers."""
    inputs, runs = lay_out(
        [(TEXT, 3), (START, 1), (VIDEO, 6), (END, 1), (TEXT, 2), (START, 1), (VIDEO, 6), (END, 1), (TEXT, 3)]
    )
    return FamilyCase(
        "qwen3_vl-video",
        fm.qwen3_vl,
        {
            **inputs,
            "mm_token_type_ids": token_kinds(inputs["input_ids"]),
            "pixel_values_videos": qwen_patches(48),
            "video_grid_thw": torch.tensor([[2, 4, 6]]),
        },
        positions(runs),
        tuple(run.reshape(2, 3) for run in runs),
        cells=block_cells([(2, 3), (2, 3)], "pixel_values_videos"),
        required=("mm_token_type_ids", "video_grid_thw"),
        enters_again=(0, 1),
    )


def internvl_case() -> FamilyCase:
    """Two tiles and their thumbnail, then an image of one tile."""
    inputs, runs = lay_out([(TEXT, 2), (START, 1), (IMAGE, 27), (END, 1), (START, 1), (IMAGE, 9), (END, 1), (TEXT, 3)])
    blocks = [*np.split(runs[0], 3), runs[1]]
    return FamilyCase(
        "internvl",
        partial(fm.internvl, 3),
        {**inputs, "pixel_values": images(4, side=6)},
        positions(runs),
        tuple(block.reshape(3, 3) for block in blocks),
        cells=square_cells([(0,), (1,), (2,), (3,)], 2 * PATCH),
        notes="grids in the order tile, tile, thumbnail, second image; all tiles of an image form one run",
    )


def crops_case(name: str, make: Callable[[], tuple[type, Any]]) -> FamilyCase:
    """Two crops and the whole image, each between markers, as Idefics3 and SmolVLM split it."""
    inputs, runs = lay_out(
        [(TEXT, 2), (MARK, 2), (IMAGE, 9), (MARK, 2), (IMAGE, 9), (MARK, 3), (IMAGE, 9), (MARK, 1), (TEXT, 3)]
    )
    return FamilyCase(
        name,
        make,
        {**inputs, "pixel_values": images(1, 3, side=6)},
        positions(runs),
        tuple(run.reshape(3, 3) for run in runs),
        cells=square_cells([(0, 0), (0, 1), (0, 2)], 2 * PATCH),
        notes="grids in the order crop, crop, whole image",
    )


def paligemma_case(name: str, make: Callable[[], tuple[type, Any]], side: int, **changes: Any) -> FamilyCase:
    """The image comes first; the whole prompt attends in both directions."""
    inputs, _ = lay_out([(IMAGE, side**2), (TEXT, 4)])
    ids = torch.cat([inputs["input_ids"][:, 1 : side**2 + 1], inputs["input_ids"][:, :1]], 1)  # <bos> after the image
    ids = torch.cat([ids, inputs["input_ids"][:, side**2 + 1 :]], 1)
    run = np.arange(side**2)
    return FamilyCase(
        name,
        make,
        {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "token_type_ids": torch.zeros_like(ids),
            "pixel_values": images(1, side=side),
        },
        positions([run]),
        (run.reshape(side, side),),
        cells=square_cells([(0,)], PATCH),
        required=("token_type_ids",),
        **changes,
    )


def gemma3_case() -> FamilyCase:
    """Two images, each attending to itself in both directions; a window smaller than one image."""
    inputs, runs = lay_out(
        [(TEXT, 2), (START, 1), (IMAGE, 9), (END, 1), (TEXT, 1), (START, 1), (IMAGE, 9), (END, 1), (TEXT, 2)]
    )
    kinds = token_kinds(inputs["input_ids"])
    return FamilyCase(
        "gemma3",
        partial(fm.gemma3, 3),
        {**inputs, "token_type_ids": kinds, "pixel_values": images(2, side=6)},
        positions(runs),
        tuple(run.reshape(3, 3) for run in runs),
        cells=square_cells([(0,), (1,)], 2 * PATCH),
        required=("token_type_ids",),
    )


def video_llava_case() -> FamilyCase:
    """Eight frames, each with the class token of the tower before its patches."""
    inputs, (run,) = lay_out([(TEXT, 2), (VIDEO, 8 * 5), (TEXT, 3)])
    frames = run.reshape(8, 5)
    return FamilyCase(
        "video_llava",
        partial(fm.video_llava, 2),
        {**inputs, "pixel_values_videos": images(1, 8, side=2)},
        positions([run]),
        tuple(frame[1:].reshape(2, 2) for frame in frames),
        tuple(frames[:, 0].tolist()),
        square_cells([(0, frame) for frame in range(8)], PATCH, "pixel_values_videos"),
    )


def mllama_case() -> FamilyCase:
    """Two tiles side by side; visual positions are rows of the states that layers 1 and 3 attend to."""
    inputs, _ = lay_out([(IMAGE, 1), (TEXT, 5)])
    tiles = np.arange(20).reshape(2, 10)  # each: class token, 3 x 3 patches
    n = inputs["input_ids"].shape[1]
    sees = torch.ones(1, n, 1, 2, dtype=torch.long)
    sees[:, 0] = 0  # what comes before the image sees none of it
    return FamilyCase(
        "mllama",
        partial(fm.mllama, 3),
        {
            **inputs,
            "pixel_values": images(1, 1, 2, side=3),
            "aspect_ratio_ids": torch.tensor([[2]]),  # one row of two tiles
            "aspect_ratio_mask": torch.ones(1, 1, 2, dtype=torch.long),
            "cross_attention_mask": sees,
        },
        torch.arange(20),
        tuple(tile[1:].reshape(3, 3) for tile in tiles),
        tuple(tiles[:, 0].tolist()),
        square_cells([(0, 0, 0), (0, 0, 1)], PATCH),
        ("aspect_ratio_ids", "aspect_ratio_mask", "cross_attention_mask"),
        cross_attention=True,
    )


CASES: tuple[FamilyCase, ...] = (
    llava_case(),
    llava_next_case(),
    llava_onevision_case(),
    llava_onevision_images_case(),
    llava_onevision_video_case(),
    qwen_case("qwen2_vl", fm.qwen2_vl),
    qwen_case("qwen2_5_vl", fm.qwen2_5_vl),
    qwen_video_case("qwen2_vl-video", fm.qwen2_vl),
    qwen_video_case("qwen2_5_vl-video", fm.qwen2_5_vl),
    qwen_case("qwen3_vl", fm.qwen3_vl, enters_again=(0, 1)),
    qwen3_vl_video_case(),
    internvl_case(),
    crops_case("idefics3", partial(fm.idefics3, 3)),
    crops_case("smolvlm", partial(fm.smolvlm, 3)),
    paligemma_case("paligemma", partial(fm.paligemma, 4), 4),
    paligemma_case("paligemma-2", partial(fm.paligemma2, 3), 3, attention=("eager",)),
    gemma3_case(),
    video_llava_case(),
    mllama_case(),
)
