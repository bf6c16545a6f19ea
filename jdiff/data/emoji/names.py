"""What each emoji is called: Unicode's names as captions, and the parts of a person's name.

Names come from the ``emoji`` package, which keeps Unicode's own: ":man_cook_medium_skin_tone:" is
called "man cook, medium skin tone" here. Tones are read from the code points, not from the name.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from emoji import EMOJI_DATA, STATUS

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
GENDERS = ("man", "woman", "person")
PROFESSIONS = (
    "artist",
    "astronaut",
    "construction worker",
    "cook",
    "detective",
    "factory worker",
    "farmer",
    "firefighter",
    "guard",
    "health worker",
    "judge",
    "mechanic",
    "office worker",
    "pilot",
    "police officer",
    "scientist",
    "singer",
    "student",
    "teacher",
    "technologist",
)

FIRST_TONE = 0x1F3FB
JOINER = "\u200d"
COLOURED = "\ufe0f"  # variation selector 16: "as a picture, not as a letter"
KEYCAP = "\u20e3"
TONE_IN_NAME = re.compile(rf"[ ](?:{'|'.join(TONES)}) skin tone\b")
LOOKS_IN_NAME = re.compile(r"^(man|woman|person) ((?:\w+ )?(?:hair|beard))$")


@dataclass(frozen=True)
class Symbol:
    """One emoji: its code points and what it is called.

    name: Unicode's name in plain words; also the first caption.
    group: "character", "keycap", "flag", "skin tone" (one person or hand) or "joined" (several drawn as one).
    profession, gender, tone: of a person, where the name states them; a single tone only.
    """

    characters: str
    name: str
    captions: tuple[str, ...]
    group: str
    profession: str | None = None
    gender: str | None = None
    tone: str | None = None

    @property
    def key(self) -> str:
        return "-".join(f"{ord(character):x}" for character in self.characters)

    @property
    def is_sequence(self) -> bool:
        return len(self.characters.replace(COLOURED, "")) > 1


@functools.cache
def symbols() -> tuple[Symbol, ...]:
    """All fully-qualified emoji that the ``emoji`` package knows, in the order of their code points."""
    aliases = _unambiguous_aliases()
    return tuple(_symbol(characters, aliases.get(characters, ())) for characters in sorted(_qualified()))


def man_woman_pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs that differ in one word, for arithmetic of meanings: "man cook" and "woman cook".

    names: of a data set's records; only pairs with both halves among them are listed, so
        skin tones pair with themselves.
    Returns (man name, woman name) pairs, sorted. A name is also its symbol's first caption.
    """
    known = set(names)
    men = sorted(name for name in known if re.match(r"man\b", name))
    return [(man, "wo" + man) for man in men if "wo" + man in known]


def _symbol(characters: str, aliases: tuple[str, ...]) -> Symbol:
    base = LOOKS_IN_NAME.sub(r"\1 with \2", TONE_IN_NAME.sub("", _words(EMOJI_DATA[characters]["en"])))
    group = _group(characters)
    if group == "flag":
        name = f"flag of {base}"
        return Symbol(characters, name, (name, f"the {name}", f"an emoji of the {name}"), group)

    tones = tuple(dict.fromkeys(TONES[ord(c) - FIRST_TONE] for c in characters if 0 <= ord(c) - FIRST_TONE < 5))
    name = f"{base}, {' and '.join(tones)} skin tone" if tones else base
    captions = [name, f"an emoji of {name}", *aliases]
    if len(tones) == 1:
        captions.append(f"{base} with {tones[0]} skin")

    first, _, rest = base.partition(" ")
    role = rest if first in GENDERS else base
    profession = role if role in PROFESSIONS else None
    return Symbol(
        characters,
        name,
        tuple(dict.fromkeys(captions)),
        group,
        profession=profession,
        gender=first if first in GENDERS else "person" if profession else None,
        tone=tones[0] if len(tones) == 1 else None,
    )


def _group(characters: str) -> str:
    if 0x1F1E6 <= ord(characters[0]) <= 0x1F1FF or "\U000e007f" in characters:  # regional letters, or a tag's end
        return "flag"
    if KEYCAP in characters:
        return "keycap"
    if JOINER in characters:
        return "joined"
    return "skin tone" if len(characters.replace(COLOURED, "")) > 1 else "character"


def _qualified() -> list[str]:
    return [characters for characters, facts in EMOJI_DATA.items() if facts["status"] == STATUS["fully_qualified"]]


def _words(name: str) -> str:
    return name.strip(":").replace("_", " ")


def _unambiguous_aliases() -> dict[str, tuple[str, ...]]:
    """Other names that are words and mean this emoji alone: "car" for automobile, but not "cat" for cat face."""
    taken = Counter(_letters(EMOJI_DATA[characters]["en"]) for characters in _qualified())
    offered = {}
    for characters in _qualified():
        words = (_words(alias) for alias in EMOJI_DATA[characters].get("alias", ()))
        offered[characters] = [alias for alias in words if re.fullmatch(r"[a-z][a-z' -]{2,}", alias)]
        taken.update({_letters(alias) for alias in offered[characters]} - {_letters(EMOJI_DATA[characters]["en"])})
    return {
        characters: tuple(alias for alias in aliases if taken[_letters(alias)] == 1 and not _repeats(alias, characters))
        for characters, aliases in offered.items()
    }


def _repeats(alias: str, characters: str) -> bool:
    return _letters(alias) == _letters(EMOJI_DATA[characters]["en"])


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())
