"""Facts in plain sentences, with the questions that they answer.

A family lists several ways to state a fact and several ways to ask for it. The two
share key words but not the sentence, so that the model has to look for the fact.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tiny_model.phrases import phrase_book, word_list
from tiny_model.words import NOUNS, WEEKDAYS, Words

ATTRIBUTES = {
    "money": "price budget fee deposit rent salary fine revenue cost value",
    "amount": "weight height length width depth speed capacity range size age distance duration",
    "colour": "colour paint cover",
    "person": "owner author manager director captain teacher designer painter president editor chef",
    "place": "capital address location birthplace headquarters origin destination harbour",
    "date": "deadline birthday anniversary release expiry start",
    "clock": "opening closing departure arrival lunch curfew",
    "code": "password code number identifier version model serial pin extension licence",
    "word": "name nickname symbol language topic purpose title material brand flavour motto",
}
ATTRIBUTE_SUFFIX = {"clock": " time", "date": " date"}

LISTED: dict[str, Sequence[str]] = {
    "noun": NOUNS,
    "weekday": WEEKDAYS,
    "job": word_list("jobs"),
    "action": word_list("actions"),
    "activity": word_list("activities"),
    "event": word_list("events"),
    "failure": word_list("failures"),
    "animals": word_list("animals"),
    "side": ("left", "right"),
}

STEPS = (
    "press the {colour} button for {number} seconds",
    "call {person}",
    "fill in form {code}",
    "turn the {noun} to the {side}",
    "send an email to {person}",
    "use the {word} on the {noun}",
    "go to {place} and ask for {person}",
    "run the command {word} {word2}",
    "type {code} and wait {number} minutes",
    "remove the {noun} and clean the {noun2}",
)

FAMILIES = phrase_book("facts.txt")

# Attributes that another family states in its own words, such as a price or a weight.
AMBIGUOUS_ATTRIBUTES = frozenset(word_list("ambiguous attributes")) | {"opening time", "start date"}

_SLOT = re.compile(r"{(\w+)}")
SHARED_SLOTS = ("thing", "person", "organisation", "place", "proper")


@dataclass(frozen=True)
class Fact:
    """One fact: the sentence that states it and the slots it was made from."""

    family: int
    slots: dict[str, str]
    sentence: str
    question: str

    def could_answer_for(self, other: Fact) -> bool:
        """Tell whether a reader could take this fact as the answer to the other's question."""
        names = {self.slots[name].lower() for name in SHARED_SLOTS if name in self.slots}
        other_names = {other.slots[name].lower() for name in SHARED_SLOTS if name in other.slots}
        if not names & other_names:
            return self.family == other.family and not (names and other_names)
        attributes = self.slots.get("attribute"), other.slots.get("attribute")
        if None not in attributes:
            return attributes[0] == attributes[1]
        if attributes != (None, None):
            return any(attribute in AMBIGUOUS_ATTRIBUTES for attribute in attributes)
        return self.family == other.family or "{proper} is a" in FAMILIES[other.family].statements[0]


def capitalised(text: str) -> str:
    """Return the text with a capital first letter; `str.capitalize` would lower the rest."""
    return text[:1].upper() + text[1:]


class FactMaker:
    """Makes facts whose names and values are new each time."""

    def __init__(self, words: Words) -> None:
        self.words = words

    def _slot(self, name: str) -> str:
        base = name.rstrip("2")
        if base in LISTED:
            return self.words.pick(LISTED[base]).replace("_", " ")
        if base == "step":
            return self.fill(self.words.pick(STEPS), {})
        return str(getattr(self.words, base)())

    def fill(self, template: str, slots: dict[str, str]) -> str:
        """Fill the slots of a template and remember in `slots` what was put in."""

        def value(match: re.Match[str]) -> str:
            name = match.group(1)
            if name not in slots:
                slots[name] = self._slot(name)
            return slots[name]

        return _SLOT.sub(value, template)

    def make(self, shared: dict[str, str] | None = None) -> Fact:
        """Make a fact; `shared` holds names that another fact already uses."""
        words = self.words
        family = int(words.rng.random() ** 1.4 * len(FAMILIES))
        block = FAMILIES[family]
        slots: dict[str, str] = dict(shared or {})
        if "{attribute}" in block.statements[0]:
            kind = words.pick(tuple(ATTRIBUTES))
            name = words.pick(ATTRIBUTES[kind].split()) + ATTRIBUTE_SUFFIX.get(kind, "")
            slots["attribute"] = words.word() if words.chance(0.2) else name
            slots["value"] = getattr(words, kind)()
        sentence = capitalised(self.fill(words.pick(block.statements), slots))
        question = capitalised(self.fill(words.pick(block.questions), slots))
        return Fact(family, slots, sentence, question)

    def asked_again(self, fact: Fact) -> Fact:
        """Ask for the same fact in other words."""
        question = self.fill(self.words.pick(FAMILIES[fact.family].questions), fact.slots)
        return Fact(fact.family, fact.slots, fact.sentence, capitalised(question))
