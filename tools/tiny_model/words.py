"""Random names, numbers and phrases.

Copying only generalises to words that the model has never seen if the training
names cannot be learned by heart. So most names here are invented anew each time.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

from tiny_model.phrases import word_list

T = TypeVar("T")

CORPUS_DIRECTORY = Path(__file__).parent / "corpus"

ONSETS = word_list("onsets")
VOWELS = ("a", "e", "i", "o", "u", "a", "e", "i", "o", "ai", "ea", "ou", "io")
CODAS = ("", "", "", "n", "r", "l", "s", "k", "m", "t", "x", "nd", "rt", "ss", "ck")
FIRST_NAMES = word_list("first names")
LAST_NAMES = word_list("last names")
CITIES = word_list("cities")
COLOURS = word_list("colours")
ADJECTIVES = word_list("adjectives")
NOUNS = word_list("nouns")
UNITS = word_list("units")
MONTHS = word_list("months")
WEEKDAYS = word_list("weekdays")
SMALL_NUMBERS = word_list("small numbers")
STOP_WORDS = frozenset(word_list("stop words"))


@cache
def corpus_texts() -> dict[str, str]:
    """Return the text that the repository carries, by file name."""
    return {path.name: path.read_text("utf-8") for path in sorted(CORPUS_DIRECTORY.glob("*.md"))}


@cache
def corpus_sentences() -> tuple[str, ...]:
    """Return the sentences of the corpus that are short enough to serve as an answer."""
    sentences: list[str] = []
    for text in corpus_texts().values():
        for paragraph in text.splitlines():
            if paragraph and not paragraph.startswith("#"):
                sentences += re.split(r"(?<=[.!?]) ", paragraph)
    return tuple(s for s in sentences if s.endswith(".") and 25 <= len(s) <= 150 and '"' not in s)


@cache
def corpus_words() -> tuple[str, ...]:
    """Return the words of the corpus, each once."""
    words = {word for text in corpus_texts().values() for word in re.findall(r"[A-Za-z]+", text)}
    return tuple(sorted(word for word in words if len(word) > 2))


def content_words(sentence: str) -> list[str]:
    """Return the words of a sentence by which a reader would look for it."""
    words = re.findall(r"[A-Za-z0-9-]+", sentence)
    return [word for word in words if len(word) >= 4 and word.lower() not in STOP_WORDS]


class Words:
    """Draws words from one random stream, so that a seed fixes every lesson."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.plainness = 0.0  # the share of names that are real words, which are shorter to read

    def pick(self, options: Sequence[T]) -> T:
        """Return one of the options."""
        return options[int(self.rng.random() * len(options))]

    def chance(self, probability: float) -> bool:
        """Return true with this probability."""
        return self.rng.random() < probability

    def invented(self, syllables: int | None = None) -> str:
        """Return a lower-case word that exists in no language."""
        count = syllables or self.pick((1, 2, 2, 2, 3, 3))
        return "".join(self.pick(ONSETS) + self.pick(VOWELS) + self.pick(CODAS) for _ in range(count))

    def letters(self) -> str:
        """Return letters without any order, the hardest thing to copy."""
        length = self.rng.randint(3, 8)
        return "".join(self.pick("abcdefghijklmnopqrstuvwxyz") for _ in range(length))

    def word(self) -> str:
        """Return a lower-case word, known or invented."""
        draw = self.rng.random() * (1.0 - self.plainness / 2)
        if draw < 0.5:
            return self.pick(corpus_words()).lower()
        if draw < 0.7:
            return self.pick(NOUNS)
        return self.invented() if draw < 0.9 else self.letters()

    def code(self) -> str:
        """Return letters and digits, such as a serial number."""
        letters = "".join(self.pick("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(self.rng.randint(1, 3)))
        digits = str(self.rng.randint(1, 99999))
        return letters + self.pick(("", "-", "-", " ")) + digits

    def proper(self) -> str:
        """Return a made-up proper name, or a real word as a name."""
        if self.plainness and self.chance(self.plainness):
            return self.pick(self.pick((corpus_words(), NOUNS, LAST_NAMES, CITIES))).capitalize()
        name = self.letters() if self.chance(0.15) else self.invented()
        return name.upper() if self.chance(0.06) else name.capitalize()

    def person(self) -> str:
        """Return the name of a person."""
        first = self.pick(FIRST_NAMES) if self.chance(0.5) else self.proper()
        draw = self.rng.random()
        if draw < 0.4:
            return first
        last = self.pick(LAST_NAMES) if self.chance(0.5) else self.proper()
        return f"{self.pick(('Dr', 'Mr', 'Ms', 'Professor'))} {last}" if draw > 0.9 else f"{first} {last}"

    def place(self) -> str:
        """Return the name of a place."""
        if self.chance(0.35):
            return self.pick(CITIES)
        name = self.proper()
        return name + self.pick(("", "", "", " Valley", " Street", " Hall", " Bay", " Park"))

    def organisation(self) -> str:
        """Return the name of a company or the like."""
        ending = ("", "", " Ltd", " Labs", " Works", " Bank", " Foods", " Systems", " University")
        return self.proper() + self.pick(ending)

    def thing(self) -> str:
        """Return a thing with its article, if it takes one."""
        draw = self.rng.random()
        noun = self.pick(NOUNS) if self.chance(0.85) else self.word()
        if draw < 0.3:
            return f"the {noun}"
        if draw < 0.55:
            return f"the {self.pick(ADJECTIVES)} {noun}"
        if draw < 0.8:
            return f"the {self.proper()} {noun}"
        return self.proper() + (f" {self.rng.randint(1, 900)}" if self.chance(0.3) else "")

    def number(self) -> str:
        """Return a number, in digits or as a word."""
        draw = self.rng.random()
        if draw < 0.15:
            return self.pick(SMALL_NUMBERS)
        if draw < 0.7:
            return str(self.rng.randint(2, 99))
        return str(self.rng.randint(100, 9999)) if draw < 0.9 else f"{self.rng.uniform(1, 100):.1f}"

    def amount(self) -> str:
        """Return a number with a unit."""
        return f"{self.number()} {self.pick(UNITS)}"

    def money(self) -> str:
        """Return an amount of money."""
        draw = self.rng.random()
        if draw < 0.3:
            return f"{self.pick('$€£')}{self.rng.randint(1, 9999)}"
        cents = f".{self.rng.randint(0, 99):02}" if draw > 0.8 else ""
        return f"{self.rng.randint(1, 2000)}{cents} {self.pick(('euros', 'dollars', 'pounds'))}"

    def year(self) -> str:
        """Return a year."""
        return str(self.rng.randint(1200, 2060))

    def date(self) -> str:
        """Return a year, a day or both."""
        draw = self.rng.random()
        if draw < 0.4:
            return self.year()
        day = f"{self.pick(MONTHS)} {self.rng.randint(1, 28)}"
        return f"{day}, {self.year()}" if draw < 0.7 else day

    def clock(self) -> str:
        """Return a time of day."""
        hour = self.rng.randint(1, 12)
        return self.pick(
            (
                f"{hour} am",
                f"{hour} pm",
                f"{hour}:{self.pick(('00', '15', '30', '45'))}",
                f"{self.pick(SMALL_NUMBERS)} o'clock",
                "noon",
                "midnight",
            )
        )

    def colour(self) -> str:
        """Return a colour."""
        return self.pick(COLOURS)

    def phrase(self, low: int = 2, high: int = 5) -> str:
        """Return a few unrelated words."""
        return " ".join(self.word() for _ in range(self.rng.randint(low, high)))

    def nonsense(self) -> str:
        """Return a sentence of unrelated words, which can only be copied, never guessed."""
        sentence = self.phrase(4, 13)
        return sentence[0].upper() + sentence[1:] + "."
