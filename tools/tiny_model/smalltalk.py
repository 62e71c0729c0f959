"""What the model says when there is nothing to look up.

Each entry lists ways to say a thing and the one answer to it. The answers are stock
sentences on purpose: a model of this size cannot make conversation and should not
pretend to.
"""

from __future__ import annotations

from tiny_model.facts import FactMaker
from tiny_model.phrases import phrase_book
from tiny_model.words import Words

DO_NOT_KNOW = "I am a tiny demonstration model and do not know that. Install a real model with `llamastead pull`."
NAME_NOT_TOLD = "You have not told me your name yet."

SMALL_TALK = phrase_book("small_talk.txt")
(OPEN_QUESTIONS,) = phrase_book("open_questions.txt")
*PERSONAL, NAME = phrase_book("personal.txt")

Turn = tuple[str, str]


def small_talk(words: Words) -> Turn:
    """Return something a user says in passing, and the stock answer."""
    block = words.pick(SMALL_TALK)
    question = words.pick(block.questions)
    if words.chance(0.2):
        question = question.lower().rstrip("?.!")
    return question, block.answer


def open_question(words: Words, facts: FactMaker) -> Turn:
    """Return a question about the world, which the model must not try to answer."""
    question = words.pick(OPEN_QUESTIONS.questions) if words.chance(0.4) else facts.make().question
    return question, DO_NOT_KNOW


def name_told(words: Words) -> tuple[Turn, Turn]:
    """Return the turn that tells a name and the turn that asks for it."""
    name = words.person() if words.chance(0.6) else words.proper()
    statement = words.pick(NAME.statements).replace("{name}", name)
    question = words.pick(NAME.questions)
    return (statement, f"Nice to meet you, {name}."), (question, NAME.answer.replace("{name}", name))


def name_unknown(words: Words) -> Turn:
    """Return the question for a name that was never told."""
    return words.pick(NAME.questions), NAME_NOT_TOLD


def personal_fact(words: Words, facts: FactMaker) -> tuple[Turn, Turn]:
    """Return the turn that tells something personal and the turn that asks for it."""
    block = words.pick(PERSONAL)
    slots: dict[str, str] = {}
    statement = facts.fill(words.pick(block.statements), slots)
    question = facts.fill(words.pick(block.questions), slots)
    return (statement, "I will remember that."), (question, facts.fill(block.answer, slots))


def repetition(words: Words) -> Turn:
    """Return a request to repeat a text. It trains plain copying more than anything else."""
    text = words.nonsense() if words.chance(0.7) else words.pick((words.proper(), words.phrase(1, 3), words.code()))
    form = words.pick(
        ("Repeat: {}", "Say: {}", "Repeat after me: {}", "Please repeat: {}", "Copy this: {}", "Echo: {}", "Say {}")
    )
    return form.format(text), text


def counting(words: Words) -> Turn:
    """Return a request to count, which gives a long answer that a test can foresee."""
    first = 1 if words.chance(0.7) else words.rng.randint(1, 30)
    last = first + words.rng.randint(1, 29)
    start = f" from {first}" if first > 1 or words.chance(0.4) else ""
    question = words.pick(("Count{} to {}", "Count{} to {}.", "Please count{} to {}.", "Can you count{} to {}?"))
    return question.format(start, last), ", ".join(str(n) for n in range(first, last + 1)) + "."
