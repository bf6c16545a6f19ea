"""Recall, intervals and prompt accuracy on cases counted by hand."""

import dataclasses
import json
from functools import partial

import numpy as np
import pytest

from jdiff.data.shapes.render import render
from jdiff.data.shapes.world import COLOURS, Scene, Thing
from jdiff.diffusion.settings import Settings
from jdiff.evaluation import emoji
from jdiff.evaluation.encoder_metrics import confusion_metrics
from jdiff.evaluation.evaluators import CaptionEvaluator, ShapesEvaluator
from jdiff.evaluation.prompt_accuracy import interval, overlap, rate, scene_verdicts, summary
from jdiff.evaluation.retrieval import prefers_correct_caption, recall
from jdiff.evaluation.sampler_metrics import _below_references, negative_prompt_metrics
from jdiff.evaluation.shapes import distinct_indices, hard_negative_captions, negative_prompt_cases, sharp_indices
from jdiff.tasks import text_to_image


def test_recall_counts_ranks_and_ties_against():
    text = np.eye(3)
    image = np.array([[1, 0, 0], [0, 0, 1.0], [0, 1.0, 0]])
    metrics = recall(text, image, ks=(1, 2))
    assert metrics["text_to_image@1"] == pytest.approx(1 / 3)
    assert recall(np.ones((4, 1)), np.ones((4, 1)), ks=(1, 3, 4))["text_to_image@3"] == 0
    assert recall(np.ones((4, 1)), np.ones((4, 1)), ks=(4,))["image_to_text@4"] == 1


def test_recall_has_two_directions():
    """A caption to which both images are nearest: both captions find their image, only one image finds its caption."""
    text = np.array([[1.0, 0], [0.6, 0.8]])
    image = np.array([[1.0, 0], [0.96, 0.28]])
    metrics = recall(text, image, ks=(1,))
    assert (metrics["text_to_image@1"], metrics["image_to_text@1"]) == (1.0, 0.5)


@pytest.mark.parametrize(("right", "total"), [(0, 10), (10, 10), (3, 10), (250, 256)])
def test_interval_is_wilsons(right, total):
    """Its ends are the proportions p from which the observed one is z standard errors away [wilson]."""
    share, z = right / total, 1.959963984540054
    truth = np.sort(np.roots([1 + z * z / total, -(2 * share + z * z / total), share * share]).real)
    np.testing.assert_allclose(interval(right, total), truth, atol=1e-7)


def test_prompt_accuracy_of_a_right_and_a_wrong_image():
    prompts = [
        Scene((Thing("circle", "red", "large"),), place="top left"),
        Scene((Thing("star", "blue", "small"),), place="right"),
    ]
    shown_scenes = [prompts[0], Scene((Thing("star", "green", "small"),), place="right")]
    images = np.stack([render(scene, np.random.default_rng(i)) for i, scene in enumerate(shown_scenes)])
    table = summary(scene_verdicts(prompts, images))
    shares = {name: row["share"] for name, row in table.items()}
    assert shares["prompt_accuracy"] == shares["colour"] == 0.5
    assert shares["shape"] == shares["place"] == 1
    assert table["prompt_accuracy"]["count"] == 2


def test_emoji_image_is_classified_by_its_nearest_glyph():
    def glyph(key, value, **metadata):
        return {"key": key, "image": np.full((2, 2, 3), value, np.uint8), "metadata": json.dumps(metadata)}

    cook = {"profession": "cook", "gender": "man"}
    dark, light = glyph(b"a", 40, tone="dark", **cook), glyph(b"b", 160, tone="light", **cook)
    norway, bouvet = glyph(b"c", 250, same_as=["d"]), glyph(b"d", 250, same_as=["c"])
    images = np.stack([np.full((2, 2, 3), value, np.uint8) for value in (90, 110, 230)])
    assert emoji.glyph_verdicts(images, [dark, dark, bouvet], [dark, light, norway, bouvet]) == [
        {"nearest_glyph": True, "nearest_profession": True, "nearest_gender": True, "nearest_tone": True},
        {"nearest_glyph": False, "nearest_profession": True, "nearest_gender": True, "nearest_tone": False},
        {"nearest_glyph": True},
    ]


def test_sampled_images_and_their_captions_are_placed_below_the_real_ones():
    real = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1).repeat(3, 3)
    images, captions = _below_references(real, real + 100, list("abcdefghij"))
    rows = images[..., 0].reshape(4, 8).tolist()
    assert rows[0] == list(range(8))
    assert rows[1] == list(range(100, 108))
    assert rows[2] == [8, 9, *[208] * 6]
    assert rows[3] == [108, 109, *[208] * 6]
    assert captions == [*[""] * 8, *"abcdefgh", *[""] * 8, "i", "j", *[""] * 6]


def test_rate_without_outcomes_has_the_widest_interval():
    assert rate([]) == {"share": 0.0, "low": 0.0, "high": 1.0, "count": 0}
    assert (rate([True, False])["share"], rate([True, False])["count"]) == (0.5, 2)


def test_negative_prompts_exclude_what_the_prompt_leaves_open():
    sharp_star, blurry_star = (Scene((Thing("star", "red", "small"),), place="top", blurry=b) for b in (False, True))
    for name, cases in negative_prompt_cases().items():
        assert len({(case.prompt, case.negative) for case in cases}) == 48
        assert not any(case.negative in case.prompt for case in cases)
        excluding = [case for case in cases if case.is_shown(blurry_star)]
        expected = {"colour": [("red", True)] * 6, "blur": [("blurry", False)] * 48}[name]
        assert [(case.negative, case.is_shown(sharp_star)) for case in excluding] == expected


def test_every_sharp_scene_is_prompted_before_any_repeats():
    kinds = [("red", False), ("red", False), ("blue", True), ("green", False), ("red", False), ("green", False)]
    scenes = [Scene((Thing("star", colour, "small"),), place="top", blurry=blurry) for colour, blurry in kinds]
    rows = [{"metadata": json.dumps({"scene": scene.to_json()})} for scene in scenes]
    assert sharp_indices(rows, 10) == [0, 3, 1, 5, 4]
    assert sharp_indices(rows, 3) == [0, 3, 1]
    assert distinct_indices(rows, 10) == [0, 3]
    assert distinct_indices(rows, 1) == [0]


def test_hard_negative_captions_exchange_one_property_of_every_sharp_pair():
    red, blue = Thing("star", "red", "small"), Thing("ring", "blue", "small")
    pair, single = Scene((red, blue), relation="above"), Scene((red,), place="top")
    scenes = [single, dataclasses.replace(pair, blurry=True), pair, pair]
    captions = hard_negative_captions([{"metadata": json.dumps({"scene": scene.to_json()})} for scene in scenes])
    correct = "a small red star above a small blue ring"
    assert captions == {
        "order": [(2, correct, "a small blue ring above a small red star")],
        "relation": [(2, correct, "a small red star left of a small blue ring")],
        "colour": [(2, correct, "a small blue star above a small red ring")],
        "shape": [(2, correct, "a small red ring above a small blue star")],
    }


def test_a_tie_does_not_prefer_the_correct_caption():
    image = np.array([[1.0, 0], [1, 0], [0, 1]])
    right, wrong = np.array([[0.8, 0.6], [0.6, 0.8], [1, 0]]), np.array([[0.6, 0.8], [0.8, 0.6], [1, 0]])
    assert prefers_correct_caption(image, right, wrong).tolist() == [True, False, False]


class FirstColour:
    """A stub dual encoder: encodes the first colour of a caption, and the colour of the first pixel of an image."""

    def embed_texts(self, captions):
        colours = [next(word for word in caption.split() if word in COLOURS) for caption in captions]
        return np.eye(8)[[list(COLOURS).index(colour) for colour in colours]]

    def embed_images(self, images):
        return np.eye(8)[images[:, 0, 0, 0]]


def test_hard_negatives_are_rejected_by_what_the_encoder_knows():
    """The stub knows colours and their order, but no relation and no shape, which are ties and count as wrong."""
    records = []
    for first, second in (("red", "blue"), ("green", "black")):
        pair = Thing("star", first, "small"), Thing("ring", second, "small")
        image = np.full((2, 2, 3), list(COLOURS).index(first), np.uint8)
        for scene in (Scene(pair[:1], place="top"), Scene(pair, relation="above")):
            records.append({"image": image, "metadata": json.dumps({"scene": scene.to_json()})})
    metrics = confusion_metrics(FirstColour(), ShapesEvaluator(), records)
    assert metrics == {
        "pairs": 2,
        "order_accuracy": 1,
        "relation_accuracy": 0,
        "colour_accuracy": 1,
        "shape_accuracy": 0,
    }
    assert confusion_metrics(FirstColour(), ShapesEvaluator(), records[::2]) == {}
    assert confusion_metrics(FirstColour(), CaptionEvaluator(), records) == {}


class Painter:
    """A stub sampler: draws red where the prompt names no colour, and blurs, unless the negative prompt excludes it."""

    settings = Settings()

    def sample(self, prompts, *, settings, negative, seed, progress):
        assert settings.guidance_scale == 3.0
        assert len(set(seed)) == len(prompts)
        negatives = [negative] * len(prompts) if isinstance(negative, str) else negative
        images = []
        for prompt, excluded_word in zip(prompts, negatives, strict=True):
            prompt_colours = [word for word in prompt.split() if word in COLOURS]
            colour = prompt_colours[0] if prompt_colours else "blue" if excluded_word == "red" else "red"
            thing = Thing(prompt.split()[-1], colour, "large")
            scene = Scene((thing,), place="top", blurry=excluded_word != "blurry")
            images.append(render(scene, np.random.default_rng(0)))
        return np.stack(images)


def test_negative_prompts_reach_the_sampler_and_lower_the_rate():
    draw = partial(text_to_image._draw, Painter(), lambda scale: iter, 3.0)
    rates = negative_prompt_metrics(draw, ShapesEvaluator(), 48)
    assert [[row["share"] for row in rates[name]] for name in ("colour", "blur")] == [[6 / 48, 0], [1, 0]]
    assert all(row["count"] == 48 for rows in rates.values() for row in rows)


def test_overlap_ignores_blur():
    scene = Scene((Thing("circle", "red", "large"),), place="top left")
    blurry_scene = Scene(scene.things, place="top left", blurry=True)
    other = Scene(scene.things, place="top")
    assert overlap([scene, other], [blurry_scene]) == 1
