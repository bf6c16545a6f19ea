"""The reader: right on scenes, and None on pictures that only resemble one."""

import ast
import inspect

import numpy as np
import pytest

from jdiff.data.shapes import adversary, reader, templates
from jdiff.data.shapes.render import BLUR_SIGMA, arrange, draw_scene, render
from jdiff.data.shapes.source import scenes_of
from jdiff.data.shapes.world import KINDS, SHAPES, SPLITS, Scene, Thing

MIN_ACCURACY = {  # minimum share read exactly right, or refused if a non-scene
    "clean": 0.999,
    "imperfect": 0.98,
    "uniform noise": 0.999,
    "flat grey": 0.999,
    "half drawn": 0.999,
    "blend": 0.996,  # one of 300: some blends are scenes themselves, as red and yellow make orange
}
RED_CIRCLE = Thing("circle", "red", "large")


def test_the_reader_shares_no_code_with_the_renderer():
    for module in (reader, templates):
        imported_modules = {
            node.module for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.ImportFrom)
        }
        assert not any("render" in name for name in imported_modules)


def test_templates_have_closed_form_areas():
    """Tables of 80 steps per radius agree with the closed forms to a thousandth."""
    truth = {
        "circle": np.pi,
        "square": 1.8**2,
        "triangle": 0.75 * np.sqrt(3) * 1.25**2,
        "star": 5 * 1.2 * 0.6 * np.sin(np.pi / 5),
        "cross": 2 * (0.72 * 2.1) - 0.72**2,
        "ring": np.pi * (1.1**2 - 0.55**2),
    }
    np.testing.assert_allclose(templates.areas(), [truth[shape] for shape in SHAPES], rtol=1e-3)


@pytest.mark.parametrize("blurry", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_two_independent_drawings_of_each_shape_agree(shape, blurry):
    """Inside tests at 64 points per pixel against areas from outlines: a pixel with two edges may differ by 2/16."""
    rng = np.random.default_rng(0)
    for size in ("small", "large"):
        (placement,) = arrange(Scene((Thing(shape, "black", size),), place="top left"), rng)
        coverage = (255.0 - draw_scene((placement,), blurry=blurry, size=32)[..., 0]) / 230.0
        values = (SHAPES.index(shape), placement.x, placement.y, placement.radius, blurry)
        (template,) = templates.templates(*(np.array([value]) for value in values), 32)
        assert np.abs(coverage - template).max() < (0.03 if blurry else 0.125)
        assert np.abs(coverage - template).mean() < 0.0025
    assert templates.BLUR_SIGMA == BLUR_SIGMA


@pytest.mark.parametrize("kind", KINDS)
def test_scenes_of_every_split_are_read_back_sharp_and_blurred(kind):
    rng = np.random.default_rng(7)
    for split in SPLITS:
        scenes = scenes_of(split, kind)
        for i in rng.permutation(len(scenes))[:60]:
            for blurry in (False, True):
                scene = Scene(scenes[i].things, scenes[i].place, scenes[i].relation, blurry)
                assert reader.read_scene(render(scene, rng)) == scene


@pytest.mark.parametrize("size", [32, 64])
def test_accuracy_of_the_reader(size):
    figures = adversary.measure_reader(300, seed=11, size=size)
    assert set(figures) == set(MIN_ACCURACY)
    for name, (right, total) in figures.items():
        assert right >= MIN_ACCURACY[name] * total - 1e-9, (name, right, total)


def scene_image(seed=0, **changes):
    scene = Scene(**({"things": (RED_CIRCLE,), "place": "centre"} | changes))
    return scene, render(scene, np.random.default_rng(seed))


def test_an_empty_picture_shows_no_scene():
    assert reader.read_scene(np.full((32, 32, 3), 255, np.uint8)) is None


def test_small_dirt_is_ignored_and_larger_dirt_is_refused():
    scene, image = scene_image()
    image[2, 2] = 0
    assert reader.read_scene(image) == scene
    image[2:5, 2:5] = 0
    assert reader.read_scene(image) is None


def test_things_between_two_places_or_two_sizes_are_refused():
    scene, image = scene_image()
    readings = [reader.read_scene(np.roll(image, shift, axis=1)) for shift in range(9)]
    places = [reading.place if reading else None for reading in readings]
    assert places[0] == "centre" and places[-1] == "right" and None in places
    (placement,) = arrange(scene, np.random.default_rng(0))
    medium = type(placement)(placement.thing, 16.0, 16.0, 4.45)
    assert reader.read_scene(draw_scene((medium,), blurry=False, size=32)) is None


def test_a_diagonal_pair_is_refused():
    small = Thing("square", "green", "small")
    scene = Scene((RED_CIRCLE, small), relation="left of")
    first, second = arrange(scene, np.random.default_rng(0))
    first, second = type(first)(first.thing, 9.0, 9.0, 5.5), type(second)(second.thing, 24.0, 24.0, 3.4)
    assert reader.read_scene(draw_scene((first, second), blurry=False, size=32)) is None


def test_faint_miscoloured_and_two_coloured_things_are_refused():
    _, image = scene_image()
    faint = 255 - (255 - image.astype(float)) * 0.6
    assert reader.read_scene(faint.astype(np.uint8)) is None
    assert reader.read_scene(image[..., [0, 1, 0]]) is None  # magenta
    halves = image.copy()
    halves[:16] = image[:16][..., ::-1]
    assert reader.read_scene(halves) is None


def test_three_different_things_are_no_scene():
    _, image = scene_image(things=(Thing("square", "green", "small"),), place="top left")
    for seed, (shape, place) in enumerate((("circle", "top right"), ("star", "bottom left"))):
        _, other = scene_image(seed, things=(Thing(shape, "blue", "small"),), place=place)
        image = np.minimum(image, other)
    assert reader.read_scene(image) is None


@pytest.mark.parametrize(
    "image", [np.zeros((33, 33, 3), np.uint8), np.zeros((32, 32, 3)), np.zeros((16, 16, 3), np.uint8)]
)
def test_arrays_of_other_shapes_and_types_are_refused(image):
    with pytest.raises(ValueError, match="multiple of 32"):
        reader.read_scene(image)
