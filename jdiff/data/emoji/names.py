"""Names of emoji: Unicode's names as captions, and profession, gender and skin tone where a name has them.

Names come from the ``emoji`` package, which has Unicode's: ":man_cook_medium_skin_tone:" becomes
"man cook, medium skin tone". Skin tones are read from the code points, not from the name.
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
EMOJI_PRESENTATION = "\ufe0f"  # variation selector 16: "as a picture, not as a letter"
KEYCAP = "\u20e3"
TONE_IN_NAME = re.compile(rf"[ ](?:{'|'.join(TONES)}) skin tone\b")
LOOKS_IN_NAME = re.compile(r"^(man|woman|person) ((?:\w+ )?(?:hair|beard))$")


@dataclass(frozen=True)
class Symbol:
    """One emoji: its code points, its name and its captions.

    name: Unicode's name in plain words; also the first caption.
    group: "character", "keycap", "flag", "skin tone" (one person or hand) or "joined" (several drawn as one).
    profession, gender, tone: of a person, if the name states them; tone only if there is just one.
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
        return len(self.characters.replace(EMOJI_PRESENTATION, "")) > 1


@functools.cache
def symbols() -> tuple[Symbol, ...]:
    """All fully-qualified emoji of the ``emoji`` package, in the order of their code points."""
    aliases = _unambiguous_aliases()
    return tuple(_symbol(characters, aliases.get(characters, ())) for characters in sorted(_fully_qualified()))


def man_woman_pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs for analogies that differ in one word: "man cook" and "woman cook".

    names: of a data set's records. Only pairs with both names among them are returned; both have the same skin tone.
    Returns (man name, woman name) pairs, sorted. A name is also its symbol's first caption.
    """
    names = set(names)
    men = sorted(name for name in names if re.match(r"man\b", name))
    return [(man, "wo" + man) for man in men if "wo" + man in names]


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
    return "skin tone" if len(characters.replace(EMOJI_PRESENTATION, "")) > 1 else "character"


def _fully_qualified() -> list[str]:
    return [characters for characters, facts in EMOJI_DATA.items() if facts["status"] == STATUS["fully_qualified"]]


def _words(name: str) -> str:
    return name.strip(":").replace("_", " ")


def _unambiguous_aliases() -> dict[str, tuple[str, ...]]:
    """Other names that are words and name one emoji only: "car" for automobile, but not "cat" for cat face."""
    use_counts = Counter(_letters(EMOJI_DATA[characters]["en"]) for characters in _fully_qualified())
    candidates = {}
    for characters in _fully_qualified():
        words = (_words(alias) for alias in EMOJI_DATA[characters].get("alias", ()))
        candidates[characters] = [alias for alias in words if re.fullmatch(r"[a-z][a-z' -]{2,}", alias)]
        english_name = _letters(EMOJI_DATA[characters]["en"])
        use_counts.update({_letters(alias) for alias in candidates[characters]} - {english_name})
    return {
        characters: tuple(
            alias for alias in aliases if use_counts[_letters(alias)] == 1 and not _repeats(alias, characters)
        )
        for characters, aliases in candidates.items()
    }


def _repeats(alias: str, characters: str) -> bool:
    return _letters(alias) == _letters(EMOJI_DATA[characters]["en"])


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())
