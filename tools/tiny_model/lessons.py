"""Lessons: whole conversations, made on the fly from facts, filler and small talk.

Each lesson is a list of messages; the training loop learns the assistant's turns only.
`Limits` is the curriculum: the lessons start short and grow.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tiny_model import smalltalk
from tiny_model.facts import SHARED_SLOTS, Fact, FactMaker, capitalised
from tiny_model.phrases import phrase_book
from tiny_model.prompt import NOT_IN_DOCUMENTS, Document, Message, system_text
from tiny_model.scenes import SceneMaker
from tiny_model.words import Words, content_words, corpus_sentences, corpus_texts

PROJECT_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly.",
    "Answer the questions of our customers.",
    "You are the assistant of the team. Be polite and short.",
    "You help people to find things in the handbook.",
    "Be brief.",
    "You are Llamastead.",
)
(MENTIONS,) = phrase_book("mentions.txt")
FILE_ENDINGS = ("pdf", "md", "txt", "html", "docx", "csv")
MAX_DOCUMENTS = 6


@dataclass(frozen=True)
class Limits:
    """How long and how hard the lessons are."""

    sentences: int
    turns: int
    documents: int = MAX_DOCUMENTS
    nonsense: float = 0.15
    scenes: float = 0.0
    plainness: float = 0.0


@dataclass
class _Page:
    """The sentences of one lesson and what is known about them."""

    facts: list[Fact] = field(default_factory=list)
    scenes: list[smalltalk.Turn] = field(default_factory=list)
    fillers: list[str] = field(default_factory=list)

    @property
    def sentences(self) -> list[str]:
        return [fact.sentence for fact in self.facts] + [answer for _, answer in self.scenes] + self.fillers


class Teacher:
    """Makes lessons from one random stream."""

    def __init__(self, seed: int) -> None:
        self.words = Words(random.Random(seed))
        self.facts = FactMaker(self.words)
        self.scenes = SceneMaker(self.words, self.facts)

    # --- what stands in the documents -------------------------------------------------

    def _filler(self, nonsense: float) -> str:
        draw = self.words.rng.random()
        if draw < nonsense:
            return self.words.nonsense()
        if draw < nonsense + 0.35:
            return self.words.pick(corpus_sentences())
        return self.facts.make().sentence

    def _another_fact(self, page: _Page) -> Fact | None:
        """Make a fact that may share a name with another one, but not its question."""
        shared: dict[str, str] = {}
        if page.facts and self.words.chance(0.4):
            neighbour = self.words.pick(page.facts)
            names = [name for name in SHARED_SLOTS if name in neighbour.slots]
            if names:
                name = self.words.pick(names)
                shared[name] = neighbour.slots[name]
        fact = self.facts.make(shared)
        clashes = any(fact.could_answer_for(f) or f.could_answer_for(fact) for f in page.facts)
        return None if clashes else fact

    def _another_scene(self, page: _Page) -> smalltalk.Turn | None:
        """Make a scene whose question no sentence of the page seems to answer."""
        sentence, question = self.scenes.make()
        asked = {word.lower() for word in content_words(question)}
        for other in page.sentences:
            found = {word.lower() for word in content_words(other)}
            if len(asked & found) * 2 > len(asked):
                return None
        return question, sentence

    def _page(self, limits: Limits) -> _Page:
        page = _Page()
        count = max(1, round(limits.sentences ** self.words.rng.uniform(0.15, 1.0)))
        while len(page.sentences) < count:
            if limits.scenes and self.words.chance(limits.scenes):
                scene = self._another_scene(page)
                if scene is not None:
                    page.scenes.append(scene)
            elif self.words.chance(0.65):
                fact = self._another_fact(page)
                if fact is not None:
                    page.facts.append(fact)
            else:
                page.fillers.append(self._filler(limits.nonsense))
        return page

    def _documents(self, sentences: list[str], most: int) -> list[Document]:
        """Spread the sentences over documents, the best score first."""
        words = self.words
        count = min(len(sentences), words.rng.randint(1, most))
        cuts = sorted(words.rng.sample(range(1, len(sentences)), count - 1))
        scores = sorted((words.rng.uniform(0.05, 0.99) for _ in range(count)), reverse=True)
        documents = []
        name = self._file_name()
        for start, end, score in zip([0, *cuts], [*cuts, len(sentences)], scores, strict=True):
            page = words.rng.randint(1, 99) if words.chance(0.5) else None
            if words.chance(0.6):
                name = self._file_name()
            documents.append(Document(name, self._chunk(sentences[start:end]), score, page))
        return documents

    def _chunk(self, sentences: list[str]) -> str:
        draw = self.words.rng.random()
        if draw < 0.7:
            text = " ".join(sentences)
        elif draw < 0.85:
            text = "\n".join(sentences)
        else:
            text = "\n".join(f"- {sentence}" for sentence in sentences)
        if self.words.chance(0.15):
            text = f"# {self.words.phrase(1, 3).capitalize()}\n\n{text}"
        return text

    def _file_name(self) -> str:
        stem = self.words.pick(("-", "_", "")).join(self.words.word() for _ in range(self.words.pick((1, 1, 2))))
        return f"{stem}.{self.words.pick(FILE_ENDINGS)}"

    # --- what is asked ----------------------------------------------------------------

    def _casual(self, question: str) -> str:
        """Write a question the way people type it."""
        draw = self.words.rng.random()
        if draw < 0.1:
            return question.lower()
        return question.lower().rstrip("?.") if draw < 0.16 else question

    def _mention(self, sentence: str, others: list[str]) -> smalltalk.Turn | None:
        """Ask for a sentence by some of its words, if they point to no other sentence."""
        found = content_words(sentence)
        if not found:
            return None
        count = min(len(found), self.words.rng.randint(1, 3))
        start = self.words.rng.randint(0, len(found) - count)
        chosen = found[start : start + count]
        lowered = {word.lower() for word in chosen}
        for other in others:
            if other != sentence and len(lowered & {w.lower() for w in content_words(other)}) * 2 > count:
                return None
            if other != sentence and count == 1 and chosen[0].lower() in other.lower():
                return None
        subject = self.words.pick(("", "", "the ")) + " ".join(chosen)
        return capitalised(self.words.pick(MENTIONS.questions).format(subject)), sentence

    def _missing(self, page: _Page) -> smalltalk.Turn:
        """Ask for something that the documents do not hold."""
        others = " ".join(page.sentences).lower()
        while True:
            if self.words.chance(0.25):
                nonsense = self.words.nonsense() if self.words.chance(0.5) else self.words.pick(corpus_sentences())
                turn = self._mention(nonsense, [])
                if turn is None or any(w.lower() in others for w in content_words(turn[0])):
                    continue
                return turn[0], NOT_IN_DOCUMENTS
            if page.scenes and self.words.chance(0.5):
                scene = self._another_scene(page)
                if scene is not None:
                    return scene[0], NOT_IN_DOCUMENTS
                continue
            fact = self._another_fact(page)
            if fact is not None:
                return fact.question, NOT_IN_DOCUMENTS

    def _question(self, page: _Page) -> smalltalk.Turn:
        if page.scenes and self.words.chance(0.75 * len(page.scenes) / len(page.sentences)):
            return self.words.pick(page.scenes)
        draw = self.words.rng.random()
        if draw < 0.58 and page.facts:
            fact = self.facts.asked_again(self.words.pick(page.facts))
            return fact.question, fact.sentence
        if draw < 0.80:
            turn = self._mention(self.words.pick(page.sentences), page.sentences)
            if turn is not None:
                return turn
        if draw > 0.985:
            return smalltalk.small_talk(self.words)
        return self._missing(page)

    # --- whole lessons ----------------------------------------------------------------

    def reading(self, limits: Limits) -> list[Message]:
        """A conversation about documents."""
        words = self.words
        words.plainness = limits.plainness
        page = self._page(limits)
        sentences = page.sentences
        words.rng.shuffle(sentences)
        documents = self._documents(sentences, limits.documents)
        turns = [self._question(page) for _ in range(words.rng.randint(1, limits.turns))]
        turns = [(self._casual(question), answer) for question, answer in turns]
        words.plainness = 0.0
        return _conversation(system_text(self._project_prompt(), documents), turns)

    def chatting(self) -> list[Message]:
        """A conversation without documents."""
        words = self.words
        turns: list[smalltalk.Turn] = []
        asked_later: list[smalltalk.Turn] = []
        name_known = False
        for _ in range(words.rng.randint(1, 5)):
            draw = words.rng.random()
            if draw < 0.22:
                turns.append(smalltalk.small_talk(words))
            elif draw < 0.36:
                turns.append(smalltalk.open_question(words, self.facts))
            elif draw < 0.58 and not name_known:
                told, asked = smalltalk.name_told(words)
                turns.append(told)
                asked_later.append(asked)
                name_known = True
            elif draw < 0.78 and len(asked_later) < 2:
                told, asked = smalltalk.personal_fact(words, self.facts)
                if all(asked[0] != other[0] for other in asked_later):
                    turns.append(told)
                    asked_later.append(asked)
            elif draw < 0.82 and not name_known:
                turns.append(smalltalk.name_unknown(words))
            elif draw < 0.86:
                turns.append(smalltalk.counting(words))
            else:
                turns.append(smalltalk.repetition(words))
        words.rng.shuffle(asked_later)
        turns += asked_later
        turns = turns or [smalltalk.small_talk(words)]
        return _conversation(self._project_prompt(), turns)

    def copying(self) -> list[Message]:
        """Plain repetition, from which a new model learns to look back at all."""
        turns = [smalltalk.repetition(self.words) for _ in range(self.words.rng.randint(1, 4))]
        return _conversation("", turns)

    def prose(self) -> str:
        """A passage of the corpus."""
        text = self.words.pick(tuple(corpus_texts().values()))
        start = self.words.rng.randrange(max(1, len(text) - 600))
        return text[text.find(" ", start) + 1 :][:600]

    def _project_prompt(self) -> str:
        draw = self.words.rng.random()
        if draw < 0.35:
            return PROJECT_PROMPTS[0]
        if draw < 0.6:
            return ""
        return self.words.pick(PROJECT_PROMPTS) if draw < 0.9 else self.words.nonsense()


def _conversation(system: str, turns: list[smalltalk.Turn]) -> list[Message]:
    messages = [Message("system", system)] if system else []
    for question, answer in turns:
        messages += [Message("user", question), Message("assistant", answer)]
    return messages
