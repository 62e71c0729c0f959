"""Pseudo-relevance feedback: words that the best hits share join the keyword side of a query."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

FEEDBACK_CHUNKS = 5
"""Chunks, best first, whose words are considered."""
ADDED_WEIGHT = 0.3
"""What the keyword score of the added words counts, beside 1 for the query's own words."""

_TERMS = 8
_WORD = re.compile(r"[^\W\d_][\w-]{2,39}")
_STOP_WORD = re.compile(
    "about|above|after|again|against|all|also|although|among|and|any|are|because|been|"
    "before|being|below|between|both|but|can|could|did|does|doing|down|during|each|either|"
    "few|for|from|further|had|has|have|having|her|here|hers|him|his|how|however|into|its|"
    "itself|just|may|might|more|most|must|neither|nor|not|off|once|one|only|other|our|"
    "out|over|own|same|several|shall|she|should|since|some|such|than|that|the|their|them|"
    "then|there|therefore|these|they|this|those|through|thus|too|two|under|until|upon|use|"
    "used|using|very|was|were|what|when|where|whereas|whether|which|while|who|whom|whose|"
    "why|will|with|within|without|would|you|your"
)


def content_words(text: str) -> Sequence[str]:
    """The words of a text that carry its meaning, in order: no stop words, nothing shorter than three letters."""
    return [word for word in _WORD.findall(text) if not _STOP_WORD.fullmatch(word.lower())]


def expansion_terms(query: str, texts: Sequence[str]) -> Sequence[str]:
    """Words to add to a query: those that most of the texts hold, ties broken by how often they occur.

    Words of the query itself, stop words and words that only one text holds are left out.
    """
    asked = {word.lower() for word in _WORD.findall(query)}
    documents: Counter[str] = Counter()
    occurrences: Counter[str] = Counter()
    for text in texts:
        words = [
            word for word in map(str.lower, _WORD.findall(text)) if word not in asked and not _STOP_WORD.fullmatch(word)
        ]
        documents.update(set(words))
        occurrences.update(words)
    shared = [word for word, count in documents.items() if count > 1]
    return sorted(shared, key=lambda word: (-documents[word], -occurrences[word], word))[:_TERMS]
