"""Grids, captions and denoising strips: sizes, places, and captions that stay in their cells."""

import numpy as np
import pytest

from jdiff.images import BACKGROUND, denoising_strip, image_grid

IMAGES = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)


def test_grid_without_captions_places_each_image_by_row_and_column():
    grid = image_grid(IMAGES, columns=2, scale=3, gap=1)
    assert grid.shape == (2 * (12 + 1) + 1, 2 * (15 + 1) + 1, 3)
    expected = np.full_like(grid, BACKGROUND)
    for i, (y, x) in enumerate([(1, 1), (1, 17), (14, 1)]):
        expected[y : y + 12, x : x + 15] = np.kron(IMAGES[i], np.ones((3, 3, 1), np.uint8))
    np.testing.assert_array_equal(grid, expected)
    np.testing.assert_array_equal(image_grid(IMAGES, columns=2, scale=3, gap=1, captions=[""] * 3), expected)


def test_caption_is_printed_beneath_its_image_and_wrapped_to_its_width():
    images = np.zeros((4, 64, 64, 3), np.uint8)
    captions = ["a red star", "", "a large red circle left of a small blue square", "x" * 40]
    grid = image_grid(images, columns=2, gap=4, captions=captions)
    one_line = image_grid(images[:2], columns=2, gap=4, captions=captions[:2])
    row = one_line.shape[0] - 4  # image, gap, one line of text, gap
    assert grid.shape[1] == one_line.shape[1] == 2 * (64 + 4) + 4
    assert grid.shape[0] - one_line.shape[0] > 64 + 4 + 3 * (row - 64 - 2 * 4)  # the second row has more than 3 lines
    caption_areas = [
        grid[4 + 64 : row, 4:68],
        grid[4 + 64 : row, 72:136],
        grid[row + 68 :, 4:68],
        grid[row + 68 :, 72:136],
    ]
    assert [(area != BACKGROUND).any() for area in caption_areas] == [True, False, True, True]
    gaps = grid[:, [0, 1, 2, 3, 68, 69, 70, 71, 136, 137, 138, 139]]
    assert (gaps == BACKGROUND).all()  # no text reaches a neighbour


def test_caption_without_an_image_is_refused():
    with pytest.raises(ValueError, match="captions has 2 entries for 3 images"):
        image_grid(IMAGES, columns=2, captions=["a", "b"])


def test_denoising_strip_shows_both_images_of_each_step():
    noisy = np.arange(7, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    strip = denoising_strip(noisy, noisy + 100, columns=3)
    assert strip[2, 2::3, 0].tolist() == [0, 3, 6]
    assert strip[5, 2::3, 0].tolist() == [100, 103, 106]
    with pytest.raises(ValueError, match="expected the same steps"):
        denoising_strip(noisy, noisy[1:])
