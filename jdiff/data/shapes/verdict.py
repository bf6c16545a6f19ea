"""Whether the scene that was seen is the scene that was asked for, attribute by attribute.

Prompt accuracy is the mean of these booleans over many pictures. A picture that the
reader refused fulfils nothing.
"""

from __future__ import annotations

from collections import Counter

from jdiff.data.shapes.world import Scene


def agrees(asked: Scene, seen: Scene | None) -> dict[str, bool | int]:
    """What of a request a picture fulfils.

    Keys: "shape", "colour", "shape_and_colour" and "size" (the things have exactly these, whatever
    their number and arrangement), then "place", "count" or "relation" by the kind of request, "blur",
    and "prompt_accuracy" (all of it). Requests for a relation add "both_objects" (both are there, by shape,
    colour and size, and nothing else asked about), "pair_prompt_accuracy" (as "prompt_accuracy") and
    "num_missing" (how many asked things are absent).
    """
    things = seen.things if seen else ()
    verdict = {
        "shape": {thing.shape for thing in things} == {thing.shape for thing in asked.things},
        "colour": {thing.colour for thing in things} == {thing.colour for thing in asked.things},
        "shape_and_colour": {(thing.shape, thing.colour) for thing in things}
        == {(thing.shape, thing.colour) for thing in asked.things},
        "size": {thing.size for thing in things} == {thing.size for thing in asked.things},
        "blur": seen is not None and seen.blurry == asked.blurry,
        "prompt_accuracy": seen == asked,
    }
    if asked.kind == "one":
        return verdict | {"place": seen is not None and seen.place == asked.place}
    if asked.kind == "count":
        return verdict | {"count": len(things) == len(asked.things)}
    num_missing = (Counter(asked.things) - Counter(things)).total()
    related = seen is not None and seen.relation == asked.relation and _kinds(seen) == _kinds(asked)
    return verdict | {
        "relation": related,
        "both_objects": num_missing == 0,
        "pair_prompt_accuracy": verdict["prompt_accuracy"],
        "num_missing": num_missing,
    }


def _kinds(scene: Scene) -> list[tuple[str, str]]:
    """The things in order, sizes aside: a relation may be right between things of a wrong size."""
    return [(thing.shape, thing.colour) for thing in scene.things]
