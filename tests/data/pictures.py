"""Image files for small test collections, and a function that reads a source's items."""

import io

from PIL import Image

from jdiff.data.records import Example, Rejected

RED, GREEN = (255, 0, 0), (0, 255, 0)


def picture(colour=RED, kind: str = "PNG", size=(8, 6)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def read(source) -> tuple[dict[str, Example], dict[str, str]]:
    """All of a source's examples, and the reasons of its rejected items, by key; keys are unique over all splits."""
    items = [item for split in source.splits() or (None,) for item in source.examples(split)]
    assert len({item.key for item in items}) == len(items)
    rejected = {item.key: item.reason for item in items if isinstance(item, Rejected)}
    for reason in rejected.values():
        assert reason.strip() and "\n" not in reason
    return {item.key: item for item in items if isinstance(item, Example)}, rejected
