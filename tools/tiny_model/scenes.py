"""Sentences about things that happen, built around a verb.

The facts of `facts.py` name their subject in full. These sentences are closer to what
stands in real documents: common nouns, verbs in another form in the question than in
the sentence, and things that the question names more briefly than the document does.
"""

from __future__ import annotations

from tiny_model.facts import FactMaker, capitalised
from tiny_model.phrases import phrase_book, word_list
from tiny_model.words import ADJECTIVES, MONTHS, NOUNS, UNITS, WEEKDAYS, Words

SCENES = phrase_book("scenes.txt")
VERBS = word_list("verbs")
REASONS = word_list("reasons")
DETERMINERS = ("the", "the", "the", "our", "every", "each", "a", "your", "all")
SIZES = ("long", "high", "wide", "deep", "heavy", "old", "large")


def past(verb: str) -> str:
    """Return the past form of a regular verb, which is also its participle."""
    if verb.endswith("e"):
        return f"{verb}d"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return f"{verb[:-1]}ied"
    return {"ban": "banned", "cancel": "cancelled", "pay": "paid", "ship": "shipped", "wrap": "wrapped"}.get(
        verb, f"{verb}ed"
    )


def third_person(verb: str) -> str:
    """Return the form that goes with he and she."""
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return f"{verb[:-1]}ies"
    return f"{verb}es" if verb.endswith(("s", "sh", "ch", "x")) else f"{verb}s"


class SceneMaker:
    """Makes sentences with their question."""

    def __init__(self, words: Words, facts: FactMaker) -> None:
        self.words = words
        self.facts = facts

    def _noun_phrase(self) -> tuple[str, str]:
        """Return a thing as the document names it and as the question does."""
        words = self.words
        noun = words.pick(NOUNS) if words.chance(0.6) else words.word()
        before = ""
        if words.chance(0.4):
            before = words.pick(ADJECTIVES) if words.chance(0.5) else words.word()
        elif words.chance(0.2):
            before = words.proper()
        ending = "s" if words.chance(0.25) else ""
        determiner = words.pick(DETERMINERS) if words.chance(0.8) else ""
        full = " ".join(part for part in (determiner, before, noun + ending) if part)
        draw = words.rng.random()
        if draw < 0.6:
            return full, full
        asked_before = before if draw < 0.85 else ""
        asked_determiner = words.pick(("the", "the", "my", "a", ""))
        return full, " ".join(part for part in (asked_determiner, asked_before, noun + ending) if part)

    def _who(self) -> str:
        words = self.words
        draw = words.rng.random()
        if draw < 0.5:
            return words.person()
        if draw < 0.65:
            return words.organisation()
        return self.facts.fill(words.pick(("the {job}", "the {noun} team", "the {job} from {place}", "the {word}")), {})

    def _when(self) -> str:
        words = self.words
        month, day = words.pick(MONTHS), words.pick(WEEKDAYS)
        return words.pick(
            (f"in {words.year()}", f"on {day}", f"at {words.clock()}", f"in {month}", f"last {day}",
             f"on {month} {words.rng.randint(1, 28)}", f"{words.number()} days ago", f"in {words.year()}")
        )  # fmt: skip

    def _often(self) -> str:
        words = self.words
        season = words.pick(("spring", "summer", "autumn", "winter", "month", "night", "year", "week", "morning"))
        return words.pick(
            (f"every {season}", f"on {words.pick(WEEKDAYS)}", f"every {words.amount()}", f"before {words.clock()}",
             f"in {season}", f"once a {season}", f"after {words.amount()}", f"on the first {words.pick(WEEKDAYS)}",
             f"within {words.amount()}", f"at {words.clock()}", f"for {words.amount()}")
        )  # fmt: skip

    def make(self) -> tuple[str, str]:
        """Return a sentence and a question that it answers."""
        words = self.words
        block = words.pick(SCENES)
        verb, other_verb, when = words.pick(VERBS), words.pick(VERBS), self._when()
        slots = {
            "base": verb,
            "past": past(verb),
            "third": third_person(verb),
            "base2": other_verb,
            "who": self._who(),
            "when": when,
            "When": capitalised(when),
            "often": self._often(),
            "reason": words.pick(REASONS),
            "size": words.pick(SIZES),
            "units": words.pick(UNITS),
            "nouns": words.pick(NOUNS) + "s",
        }
        for name in ("object", "object2", "object3"):
            slots[name], slots[f"{name}_"] = self._noun_phrase()
        sentence = capitalised(self.facts.fill(words.pick(block.statements), slots))
        question = capitalised(self.facts.fill(words.pick(block.questions), slots))
        return sentence, question
