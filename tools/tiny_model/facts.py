"""Facts in plain sentences, with the questions that they answer.

A family lists several ways to state a fact and several ways to ask for it. The two
share key words but not the sentence, so that the model has to look for the fact.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tiny_model.words import Words

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

ACTIONS = (
    "reset open close clean install cancel renew start stop repair book order return charge update "
    "replace request report lock unlock move register connect print use feed activate delete "
    "change test pay store wash switch_on switch_off sign_up_for apply_for get_to log_in_to"
).split()
ACTIVITIES = "swim sing dance paint cook climb sleep work study read run play chess garden".split()
JOBS = "nurse baker pilot painter teacher doctor farmer lawyer driver engineer librarian cook".split()
EVENTS = "meeting party race lecture parade election workshop audit concert exhibition".split()
FAILURES = "stopped failed broke closed exploded leaked froze disappeared collapsed shrank".split()
ANIMALS = "llamas cows sheep bees birds wolves children visitors workers guests customers".split()

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

FAMILIES: tuple[tuple[str, str], ...] = (
    # Statements, a bar between two of them; then the questions.
    ("The {attribute} of {thing} is {value}.|{thing} has the {attribute} {value}.|The {attribute} for {thing} is {value}.|For {thing}, the {attribute} is {value}.",
     "What is the {attribute} of {thing}?|Tell me the {attribute} of {thing}.|What {attribute} does {thing} have?|Do you know the {attribute} of {thing}?|What is the {attribute} for {thing}?|Which {attribute} has {thing}?|Please give me the {attribute} of {thing}."),
    ("{person}'s {attribute} is {value}.|The {attribute} of {person} is {value}.",
     "What is {person}'s {attribute}?|What is the {attribute} of {person}?"),
    ("{thing} costs {money}.|You pay {money} for {thing}.|{thing} is sold for {money}.",
     "How much does {thing} cost?|How much is {thing}?|What does {thing} cost?|How much do I pay for {thing}?"),
    ("{organisation} was founded in {year} by {person}.|{person} founded {organisation} in {year}.|In {year}, {person} founded {organisation}.",
     "When was {organisation} founded?|Who founded {organisation}?|In which year was {organisation} founded?|Who is the founder of {organisation}?"),
    ("{person} wrote {proper} in {year}.|{proper} was written by {person}.|The book {proper} was written in {year} by {person}.",
     "Who wrote {proper}?|Who is the author of {proper}?|Who wrote the book {proper}?"),
    ("{thing} is located in {place}.|{thing} is in {place}.|You will find {thing} in {place}.|{thing} stands near {place}.",
     "Where is {thing}?|Where can I find {thing}?|Where is {thing} located?|In which place is {thing}?"),
    ("{thing} opens at {clock}.|{thing} opens at {clock} and closes at {clock2}.|{thing} is open from {clock} to {clock2}.",
     "When does {thing} open?|At what time does {thing} open?|What are the opening hours of {thing}?|When is {thing} open?"),
    ("{person} works as a {job} in {place}.|{person} is a {job} in {place}.|{person} has worked as a {job} since {year}.",
     "What does {person} do?|What is the job of {person}?|What does {person} work as?|Who is {person}?"),
    ("{person} lives in {place}.|{person} has lived in {place} since {year}.|{person} moved to {place} in {year} and lives there.",
     "Where does {person} live?|In which town does {person} live?|Where is the home of {person}?"),
    ("{person} was born in {place} in {year}.|{person} was born in {year}.|In {year}, {person} was born.",
     "When was {person} born?|In which year was {person} born?|What year was {person} born?"),
    ("{person} leads the {noun} team.|The {noun} team is led by {person}.|The head of the {noun} team is {person}.",
     "Who leads the {noun} team?|Who is the head of the {noun} team?|Who runs the {noun} team?"),
    ("{person} invented {thing} in {year}.|{thing} was invented by {person}.|In {year} {thing} was invented by {person}.",
     "Who invented {thing}?|Who is the inventor of {thing}?"),
    ("{person} built {thing} in {year}.|{thing} was built in {year} by {person}.|{thing} was built by {organisation} in {year}.",
     "When was {thing} built?|Who built {thing}?|In which year was {thing} built?"),
    ("To {action} {thing}, {step}.|You can {action} {thing} if you {step}.|If you want to {action} {thing}, {step}.|{thing}: to {action} it, {step}.",
     "How do I {action} {thing}?|How can I {action} {thing}?|What must I do to {action} {thing}?|How to {action} {thing}?|How do you {action} {thing}?"),
    ("{thing} {failure} because of the {word}.|Because of the {word}, {thing} {failure}.|{thing} {failure} because the {noun} was {colour}.",
     "Why did {thing} stop?|Why has {thing} {failure}?|What happened to {thing}?|Why {failure} {thing}?"),
    ("{thing} is used for {word} {word2}.|People use {thing} for {word} {word2}.|{thing} is made for {word} {word2}.",
     "What is {thing} used for?|What do people use {thing} for?|What is {thing} for?|Why do people use {thing}?"),
    ("{thing} is {amount} long.|{thing} has a length of {amount}.",
     "How long is {thing}?|What is the length of {thing}?"),
    ("{thing} weighs {amount}.|{thing} is {amount} heavy.",
     "How much does {thing} weigh?|How heavy is {thing}?"),
    ("{thing} takes {amount}.|{thing} lasts {amount}.|{thing} runs for {amount}.",
     "How long does {thing} take?|How long does {thing} last?"),
    ("There are {number} {animals} in {place}.|{place} has {number} {animals}.|{number} {animals} live in {place}.",
     "How many {animals} are in {place}?|How many {animals} are there in {place}?|How many {animals} live in {place}?|How many {animals} does {place} have?"),
    ("The {event} takes place on {date} in {place}.|The {event} is on {date}.|On {date} there is a {event} in {place}.",
     "When is the {event}?|On which day is the {event}?|What is the date of the {event}?|When does the {event} take place?"),
    ("The {proper} {event} starts at {clock}.|The {proper} {event} starts on {weekday} at {clock}.",
     "When does the {proper} {event} start?|When is the {proper} {event}?|At what time does the {proper} {event} start?"),
    ("{person} likes to {activity}.|{person} likes to {activity} on {weekday}.|Every {weekday} {person} goes to {place} to {activity}.",
     "What does {person} like?|What does {person} like to do?|What is the hobby of {person}?"),
    ("Employees of {organisation} get {number} days of {word}.|{organisation} gives each employee {number} days of {word}.|At {organisation} each worker has {number} days of {word}.",
     "How many days of {word} do employees of {organisation} get?|How many days of {word} are there at {organisation}?|How much {word} does {organisation} give?"),
    ("{thing} belongs to {person}.|{person} owns {thing}.|The owner of {thing} is {person}.",
     "Who owns {thing}?|To whom does {thing} belong?|Whose is {thing}?|Who is the owner of {thing}?"),
    ("{organisation} makes {word} {noun}s in {place}.|{organisation} produces {noun}s.|{organisation} sells {word} and {noun}s.",
     "What does {organisation} make?|What does {organisation} produce?|What does {organisation} sell?|What is {organisation}?"),
    ("{proper} is the capital of {place}.|The capital of {place} is {proper}.|The capital city of {place} is called {proper}.",
     "What is the capital of {place}?|Which city is the capital of {place}?|Name the capital of {place}."),
    ("{proper} is a {word} that eats {word2}.|{proper} is a kind of {noun} from {place}.|{proper} means {word} {word2}.|{proper} stands for {word} {word2}.",
     "What is {proper}?|What is a {proper}?|What does {proper} mean?|Tell me about {proper}.|Explain {proper}."),
    ("Customers can return {thing} within {number} days.|{thing} can be returned within {number} days.|The return period for {thing} is {number} days.",
     "How long can customers return {thing}?|Within how many days can {thing} be returned?|Can I return {thing}?|What is the return period for {thing}?"),
    ("The warranty for {thing} lasts {number} years.|{thing} has a warranty of {number} years.|{thing} comes with a {number} year warranty.",
     "How long is the warranty for {thing}?|What is the warranty of {thing}?|How long does the warranty for {thing} last?"),
    ("{person} met {person2} in {place}.|{person} and {person2} met in {year}.",
     "Whom did {person} meet?|Where did {person} meet {person2}?|When did {person} meet {person2}?"),
    ("{word} {noun}s must be kept at {number} degrees.|Keep {word} {noun}s at {number} degrees.|The right temperature for {word} {noun}s is {number} degrees.",
     "At what temperature must {word} {noun}s be kept?|How warm should {word} {noun}s be?|What is the right temperature for {word} {noun}s?"),
)

_SLOT = re.compile(r"{(\w+)}")
SHARED_SLOTS = ("thing", "person", "organisation", "place", "proper")


@dataclass(frozen=True)
class Fact:
    """One fact: the sentence that states it and the slots it was made from."""

    family: int
    slots: dict[str, str]
    sentence: str
    question: str

    @property
    def key(self) -> tuple[str, ...]:
        """What the question names. Two facts with one key would answer the same question."""
        names = {name for text in FAMILIES[self.family][1].split("|") for name in _SLOT.findall(text)}
        return (str(self.family), *(self.slots[n].lower() for n in sorted(names) if n in self.slots))


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


class FactMaker:
    """Makes facts whose names and values are new each time."""

    def __init__(self, words: Words) -> None:
        self.words = words

    def _slot(self, name: str) -> str:
        words = self.words
        base = name.rstrip("2")
        listed = {
            "noun": "NOUNS", "job": JOBS, "action": ACTIONS, "activity": ACTIVITIES,
            "event": EVENTS, "failure": FAILURES, "animals": ANIMALS, "side": ("left", "right"),
        }
        if base == "noun":
            from tiny_model.words import NOUNS

            return words.pick(NOUNS)
        if base == "weekday":
            from tiny_model.words import WEEKDAYS

            return words.pick(WEEKDAYS)
        if base in listed:
            return words.pick(listed[base]).replace("_", " ")
        if base == "step":
            return self._fill(words.pick(STEPS), {})
        return getattr(words, base)()

    def _fill(self, template: str, slots: dict[str, str]) -> str:
        """Fill the slots of a template and remember what was put in."""

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
        statements, questions = FAMILIES[family]
        slots: dict[str, str] = dict(shared or {})
        if "{attribute}" in statements:
            kind = words.pick(tuple(ATTRIBUTES))
            name = words.pick(ATTRIBUTES[kind].split()) + ATTRIBUTE_SUFFIX.get(kind, "")
            slots["attribute"] = words.word() if words.chance(0.2) else name
            slots["value"] = getattr(words, kind)()
        sentence = capitalised(self._fill(words.pick(statements.split("|")), slots))
        question = capitalised(self._fill(words.pick(questions.split("|")), slots))
        return Fact(family, slots, sentence, question)

    def statement_and_question_again(self, fact: Fact) -> Fact:
        """Ask for the same fact in other words."""
        question = self._fill(self.words.pick(FAMILIES[fact.family][1].split("|")), fact.slots)
        return Fact(fact.family, fact.slots, fact.sentence, capitalised(question))
