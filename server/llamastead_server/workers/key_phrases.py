"""Key phrases and summaries: kreuzberg's YAKE and RAKE, scikit-learn's TF-IDF, TextRank over both."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

_SENTENCE = re.compile(r"[^.!?\n]+[.!?]+[\"'”’)]*|[^.!?\n]+$", re.M)
_WORD = re.compile(r"[^\W\d_]{3,}")
_MOST_SENTENCES = 400


class KeyPhrases:
    """Key phrases by one algorithm.

    Args:
        algorithm: `yake`, `rake`, `tfidf` or `textrank`.
        settings: The extractor's settings, by LlamaFarm's names.
        documents: All chunks of the file, which TF-IDF compares.
    """

    def __init__(self, algorithm: str, settings: Mapping[str, Any], documents: Sequence[str]) -> None:
        self._settings = settings
        self._most = int(settings["max_keywords"])
        self._stop_words = frozenset(word.lower() for word in settings.get("stop_words") or ())
        match algorithm:
            case "yake" | "rake":
                self._find = _Kreuzberg(algorithm, settings).find
            case "tfidf":
                self._find = _Tfidf(settings, documents).find
            case _:
                self._find = _text_rank_words

    def of(self, text: str) -> list[str]:
        """The best phrases of a text, best first."""
        kept: list[str] = []
        for phrase in self._find(text, self._most * 3):
            if self._fits(phrase, text) and not self._repeats(phrase, kept):
                kept.append(phrase[:200])
            if len(kept) == self._most:
                break
        return kept

    def _fits(self, phrase: str, text: str) -> bool:
        words = phrase.lower().split()
        if not any(letter.isalpha() for letter in phrase):
            return False
        settings = self._settings
        # Without a range of its own YAKE's n-gram size says how many words there are.
        longest = settings.get("max_length") or settings.get("max_ngram_size") or len(words)
        if not settings.get("min_length", 1) <= len(words) <= longest or self._stop_words & set(words):
            return False
        return text.lower().count(phrase.lower()) >= int(settings.get("min_frequency", 1))

    def _repeats(self, phrase: str, kept: Sequence[str]) -> bool:
        threshold = self._settings.get("deduplication_threshold", 1.0)
        return any(SequenceMatcher(None, phrase.lower(), other.lower()).ratio() >= threshold for other in kept)


class _Kreuzberg:
    def __init__(self, algorithm: str, settings: Mapping[str, Any]) -> None:
        import kreuzberg

        self._kreuzberg: Any = kreuzberg
        longest = int(settings.get("max_ngram_size") or settings.get("max_length") or 3)
        self._keywords = kreuzberg.KeywordConfig(
            algorithm=kreuzberg.KeywordAlgorithm.Yake if algorithm == "yake" else kreuzberg.KeywordAlgorithm.Rake,
            max_keywords=int(settings["max_keywords"]) * 3,
            ngram_range=(1, longest),
            language=settings.get("language", "en"),
            rake_params=kreuzberg.RakeParams(max_words_per_phrase=longest) if algorithm == "rake" else None,
        )

    def find(self, text: str, most: int) -> list[str]:
        config = self._kreuzberg.ExtractionConfig(use_cache=False, keywords=self._keywords)
        result = self._kreuzberg.extract_bytes_sync(text.encode(), "text/plain", config)
        ranked = sorted(result.extracted_keywords or (), key=lambda keyword: -keyword.score)
        # It finds nothing in texts of a few words, where every word is a key.
        return [str(keyword.text) for keyword in ranked][:most] or _text_rank_words(text, most)


class _Tfidf:
    def __init__(self, settings: Mapping[str, Any], documents: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._vectorizer = TfidfVectorizer(
            ngram_range=(1, int(settings.get("max_ngram_size") or 2)),
            stop_words="english" if settings.get("language", "en") == "en" else None,
            token_pattern=r"(?u)\b[^\W\d_]{2,}\b",
            max_features=50_000,
        )
        try:
            self._vectorizer.fit(documents)
            self._names = self._vectorizer.get_feature_names_out()
        except ValueError:  # nothing but stop words
            self._names = None

    def find(self, text: str, most: int) -> list[str]:
        if self._names is None:
            return []
        row = self._vectorizer.transform([text])
        ranked = sorted(zip(row.indices, row.data, strict=True), key=lambda pair: (-pair[1], self._names[pair[0]]))
        return [str(self._names[index]) for index, _ in ranked[:most]]


def _text_rank_words(text: str, most: int) -> list[str]:
    """Words by their rank among the words they stand beside."""
    words = _significant(text)
    neighbours: dict[str, Counter[str]] = {word: Counter() for word in words}
    for place, word in enumerate(words):
        for other in words[place + 1 : place + 3]:
            if other != word:
                neighbours[word][other] += 1
                neighbours[other][word] += 1
    rank = dict.fromkeys(neighbours, 1.0)
    for _ in range(15):
        rank = {
            word: 0.15
            + 0.85 * sum(rank[other] * weight / sum(neighbours[other].values()) for other, weight in beside.items())
            for word, beside in neighbours.items()
        }
    return sorted(rank, key=lambda word: (-rank[word], word))[:most]


def summary(text: str, settings: Mapping[str, Any]) -> str:
    """The sentences that say most, in the order they stand."""
    candidates = [
        sentence
        for sentence in sentences(text)
        if settings["min_sentence_length"] <= len(sentence) <= settings["max_sentence_length"]
    ][:_MOST_SENTENCES]
    most = settings["summary_sentences"]
    if len(candidates) <= most:
        return " ".join(candidates)[:2000]
    scores = _scores(candidates, settings["algorithm"])
    best = sorted(sorted(range(len(candidates)), key=lambda index: -scores[index])[:most])
    return " ".join(candidates[index] for index in best)[:2000]


def sentences(text: str) -> list[str]:
    """The sentences of a text."""
    return [stripped for match in _SENTENCE.finditer(text) if (stripped := match[0].strip())]


def _scores(candidates: Sequence[str], algorithm: str) -> Sequence[float]:
    if algorithm == "luhn":
        return _luhn(candidates)
    import numpy
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        matrix = TfidfVectorizer(stop_words="english").fit_transform(candidates).toarray()
    except ValueError:  # nothing but stop words
        return [-float(place) for place in range(len(candidates))]
    if algorithm == "lsa":
        left, values, _ = numpy.linalg.svd(matrix, full_matrices=False)
        topics = min(5, len(values))
        return list(numpy.sqrt(((left[:, :topics] * values[:topics]) ** 2).sum(axis=1)))
    # TextRank weighs every likeness of two sentences, LexRank counts those that are alike enough.
    alike = matrix @ matrix.T
    numpy.fill_diagonal(alike, 0.0)
    if algorithm == "lexrank":
        alike = (alike > 0.1).astype(float)
    sums = alike.sum(axis=0)
    steps = alike / numpy.where(sums > 0, sums, 1.0)
    rank = numpy.full(len(candidates), 1.0 / len(candidates))
    for _ in range(30):
        rank = 0.15 / len(candidates) + 0.85 * steps @ rank
    return list(rank)


def _luhn(candidates: Sequence[str]) -> Sequence[float]:
    counts = Counter(word for sentence in candidates for word in _significant(sentence))
    return [sum(counts[word] for word in _significant(each)) / (len(each.split()) or 1) for each in candidates]


def _significant(text: str) -> list[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return [word for match in _WORD.finditer(text) if (word := match[0].lower()) not in ENGLISH_STOP_WORDS]
