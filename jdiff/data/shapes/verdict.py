"""Attribute-by-attribute comparison of the scene that a picture shows with the scene of its prompt.

Prompt accuracy is the mean of these booleans over many pictures. A picture that the reader refuses is wrong in all.
"""

from __future__ import annotations

from collections import Counter

from jdiff.data.shapes.world import Scene


def agrees(prompt: Scene, picture: Scene | None) -> dict[str, bool | int]:
    """Compare a prompt's scene with the scene read from a picture, None if the reader refused it.

    Keys: "shape", "colour", "shape_and_colour" and "size" (the sets of these are equal, whatever the number and
    arrangement of things), then "place", "count" or "relation" by the prompt's kind, "blur", and "prompt_accuracy"
    (everything is equal). Prompts of a relation add "both_objects" (both things are present, by shape, colour and size;
    nothing else matters), "pair_prompt_accuracy" (as "prompt_accuracy") and "num_missing" (the number of the prompt's
    things that the picture lacks).
    """
    things = picture.things if picture else ()
    verdict = {
        "shape": {thing.shape for thing in things} == {thing.shape for thing in prompt.things},
        "colour": {thing.colour for thing in things} == {thing.colour for thing in prompt.things},
        "shape_and_colour": {(thing.shape, thing.colour) for thing in things}
        == {(thing.shape, thing.colour) for thing in prompt.things},
        "size": {thing.size for thing in things} == {thing.size for thing in prompt.things},
        "blur": picture is not None and picture.blurry == prompt.blurry,
        "prompt_accuracy": picture == prompt,
    }
    if prompt.kind == "one":
        return verdict | {"place": picture is not None and picture.place == prompt.place}
    if prompt.kind == "count":
        return verdict | {"count": len(things) == len(prompt.things)}
    num_missing = (Counter(prompt.things) - Counter(things)).total()
    relation_right = picture is not None and picture.relation == prompt.relation and _kinds(picture) == _kinds(prompt)
    return verdict | {
        "relation": relation_right,
        "both_objects": num_missing == 0,
        "pair_prompt_accuracy": verdict["prompt_accuracy"],
        "num_missing": num_missing,
    }


def _kinds(scene: Scene) -> list[tuple[str, str]]:
    """Shapes and colours in order, without sizes: a relation may be right between things of a wrong size."""
    return [(thing.shape, thing.colour) for thing in scene.things]
