"""The data sources: where captioned images come from, by the names that config.data.source takes.

A source is a frozen dataclass whose fields are keys of config.data (for a TFDS set, NAME is ``dataset``). It yields
captioned images split by split, with the interface ``records.Source``. Two draw their images, two read existing ones:

    shapes     coloured shapes and sentences about them, drawn from a seed
    emoji      the emoji of an open font, with their names
    folder     a folder of images with their captions
    tfds:NAME  a set of TensorFlow Datasets with texts or labels

Real collections are dirty. An item that cannot be used becomes ``Rejected`` with its reason, and the others are still
read; only a collection without any usable item is an error.
"""

from jdiff.data.emoji import Emoji
from jdiff.data.folder import Folder
from jdiff.data.shapes.source import Shapes
from jdiff.data.tfds_set import TfdsSet

SOURCES = {"shapes": Shapes, "emoji": Emoji, "folder": Folder, "tfds": TfdsSet}
