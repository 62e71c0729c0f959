"""Schemas that bind: random walks over the allowed tokens always end in JSON of the schema."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest

from llamastead_server.workers.json_grammar import JsonGrammar, Vocabulary
from llamastead_server.workers.model import Refused

WORDS = (
    "true", "false", "null", '": ', '", "', '"}', '{"', "12", ".5", "ab", "abc", "name", "age", "  ", "\\n", "日", "本",
    "}}", ',"', '":', "],", " {",
)  # fmt: skip
TOKENS = [bytes([byte]) for byte in range(256)] + [word.encode() for word in WORDS] + ["語".encode()[:2], b""]
END = len(TOKENS) - 1
CLOSING = (b'"', b"}", b"]", b'"}')
NODE = {
    "type": "object",
    "properties": {"v": {"type": "number"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
    "required": ["v", "next"],
    "additionalProperties": False,
}
SCHEMAS: list[dict[str, Any]] = [
    {"type": "object"},
    {},
    {
        "title": "A person",
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "age": {"type": "integer", "description": "in years"},
            "nick": {"type": ["string", "null"]},
        },
        "required": ["name"],
    },
    {"type": "array", "items": {"enum": [1, 2, 30]}, "minItems": 2, "maxItems": 4},
    {"enum": ["ab", "abc", "x y", "日本"]},
    {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
    {"type": "string", "format": "date"},
    {"type": "string", "pattern": "^[a-c]{2,4}$"},
    {"type": "object", "additionalProperties": {"type": "boolean"}},
    {"type": "object", "additionalProperties": False},
    {"type": "string", "minLength": 3, "maxLength": 5},
    {"const": "abc"},
    {"const": 5},
    {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}},
    {"allOf": [{"type": "boolean"}]},
    {"type": "array"},
]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(len(TOKENS), TOKENS.__getitem__, [END])


def walk(schema: dict[str, Any], vocabulary: Vocabulary, seed: int) -> str:
    """Writes an answer of random tokens that are allowed, with a growing wish to come to an end."""
    draw, grammar, written = random.Random(seed), JsonGrammar(schema, vocabulary), []
    for step in range(400):
        allowed = [int(token) for token in grammar.allowed().nonzero().flatten()]
        assert not grammar.stuck
        if END in allowed and (step > 40 or draw.random() < 0.5 or allowed == [END]):
            return b"".join(TOKENS[token] for token in written).decode(errors="replace")
        closing = [token for token in allowed if TOKENS[token] in CLOSING]
        hurry = closing and draw.random() < (0.9 if step > 40 else 0.3)
        token = draw.choice(closing if hurry else [token for token in allowed if token != END])
        written.append(token)
        grammar.feed(token)
    raise AssertionError("it came to no end")


@pytest.mark.parametrize("schema", SCHEMAS, ids=[json.dumps(schema)[:40] for schema in SCHEMAS])
def test_whatever_is_drawn_satisfies_the_schema(schema: dict[str, Any], vocabulary: Vocabulary) -> None:
    for seed in range(12):
        jsonschema.validate(json.loads(walk(schema, vocabulary, seed)), schema)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "integer", "minimum": 3}, "minimum"),
        ({"oneOf": [{"type": "string"}]}, "oneOf"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "object", "patternProperties": {"a": {}}}, "patternProperties"),
        ({"type": "object", "properties": {"a": {"type": "number", "multipleOf": 2}}}, r"properties\.a\.multipleOf"),
        ({"type": "object", "required": ["a"]}, "does not list"),
        ({"type": "string", "format": "email"}, "email"),
        ({"type": "string", "pattern": "a", "minLength": 2}, "beside a length"),
        ({"enum": [1, "a"]}, "only strings, or only numbers"),
        ({"enum": [True]}, "only strings, or only numbers"),
        ({"enum": []}, "at least one"),
        ({"const": 'say "hi"'}, "cannot force"),
        ({"const": "щ"}, "cannot force"),
        ({"type": "nonsense"}, "nonsense"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"allOf": [{"type": "string"}, {"type": "string"}]}, "more than one branch"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "more than its maxLength"),
        ({"type": "string", "pattern": "foo**("}, "not supported"),
        ({"items": 3}, "must be an object"),
    ],
)
def test_what_would_not_bind_is_refused_by_name(schema: dict[str, Any], named: str, vocabulary: Vocabulary) -> None:
    with pytest.raises(Refused, match=named):
        JsonGrammar(schema, vocabulary)


def test_an_answer_that_cannot_go_on_says_so_and_ends() -> None:
    tokens = [b"t", b"r", b""]
    grammar = JsonGrammar({"type": "boolean"}, Vocabulary(3, tokens.__getitem__, [2]))
    for token in (0, 1):
        assert grammar.allowed().nonzero().flatten().tolist() == [token]
        grammar.feed(token)
    assert not grammar.stuck
    assert grammar.allowed().nonzero().flatten().tolist() == [2]
    assert grammar.stuck


def test_a_long_answer_keeps_no_history(vocabulary: Vocabulary) -> None:
    grammar = JsonGrammar({"type": "string"}, vocabulary)
    for token in b'"' + b"a" * 200:
        grammar.allowed()
        grammar.feed(token)
    grammar.allowed()
    assert len(grammar._enforcer.prefix_states) == 1
