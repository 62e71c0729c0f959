"""JSON schemas that bind an answer on ExLlamaV2, by lm-format-enforcer.

That library ignores what it does not know, and ends the answer where it cannot go on. So a schema is first
brought into the part of the language that it keeps, and what lies outside is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llamastead_server.workers.model import Refused

_NOTES = frozenset({"$schema", "$id", "$comment", "title", "description", "default", "examples", "deprecated",
                    "readOnly", "writeOnly"})  # fmt: skip
_DEFINITIONS = ("$defs", "definitions")
_OF_TYPE: Mapping[str, frozenset[str]] = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "number": frozenset(),
    "integer": frozenset(),
    "boolean": frozenset(),
    "null": frozenset(),
}
_FORMATS = {
    "date": r"\d{4}-\d{2}-\d{2}",
    "time": r"\d{2}:\d{2}:\d{2}Z",
    "date-time": r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}
ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
"""The schema of any JSON object."""


def enforceable(schema: Mapping[str, Any], alphabet: Callable[[str], bool]) -> dict[str, Any]:
    """The same schema in the words that the library keeps to the letter.

    Args:
        schema: A JSON schema.
        alphabet: Whether the model can write a character by itself.

    Raises:
        Refused: It uses something that would not bind the answer; the message names it.
    """
    definitions = {name: dict(schema[name]) for name in _DEFINITIONS if isinstance(schema.get(name), Mapping)}
    rules = _Rules({f"#/{place}/{name}" for place, named in definitions.items() for name in named}, alphabet)
    body = {key: value for key, value in schema.items() if key not in _DEFINITIONS}
    result = rules.rewritten(body, "schema")
    for place, named in definitions.items():
        result[place] = {name: rules.rewritten(entry, f"{place}.{name}") for name, entry in named.items()}
    return result


class _Rules:
    def __init__(self, references: set[str], alphabet: Callable[[str], bool]) -> None:
        self._references = references
        self._alphabet = alphabet

    def rewritten(self, node: Any, path: str) -> dict[str, Any]:
        if node is True:
            node = {}
        if not isinstance(node, Mapping):
            raise Refused(f"The JSON schema is invalid: {path} must be an object.")
        rules = {key: value for key, value in node.items() if key not in _NOTES}
        if "$ref" in rules:
            return self._reference(rules, path)
        for key in ("anyOf", "allOf"):
            if key in rules:
                return self._alternatives(rules, key, path)
        if "const" in rules:
            rules["enum"] = [rules.pop("const")]
        if "enum" in rules:
            return self._choice(rules, path)
        kind = rules.pop("type", None)
        if kind is None:
            kind = "object" if "properties" in rules else "array" if "items" in rules else None
        if kind is None:
            self._only(rules, frozenset(), path)
            return {"anyOf": [{"type": name} for name in _OF_TYPE if name != "integer"]}
        if isinstance(kind, list):
            known = [{**_part(rules, name), "type": name} for name in kind]
            self._only(rules, frozenset[str]().union(*(_OF_TYPE.get(name, ()) for name in kind)), path)
            return {"anyOf": [self.rewritten(each, path) for each in known]}
        if kind not in _OF_TYPE:
            raise Refused(f"The JSON schema is invalid: {path}.type {kind!r} is not a type.")
        self._only(rules, _OF_TYPE[kind], path)
        return {"type": kind, **getattr(self, f"_{kind}", lambda rules, path: rules)(rules, path)}

    def _reference(self, rules: Mapping[str, Any], path: str) -> dict[str, Any]:
        self._only(rules, frozenset({"$ref"}), path)
        if rules["$ref"] not in self._references:
            raise Refused(f"The JSON schema is invalid: {path} refers to {rules['$ref']!r}, which it does not define.")
        return dict(rules)

    def _alternatives(self, rules: Mapping[str, Any], key: str, path: str) -> dict[str, Any]:
        self._only(rules, frozenset({key}), path)
        branches = rules[key]
        if not isinstance(branches, list) or not branches:
            raise Refused(f"The JSON schema is invalid: {path}.{key} must be a list.")
        rewritten = [self.rewritten(branch, f"{path}.{key}.{number}") for number, branch in enumerate(branches)]
        if key == "allOf":
            if len(rewritten) > 1:
                raise Refused(f"The JSON schema is not supported: {path}.allOf has more than one branch.")
            return rewritten[0]
        return {"anyOf": rewritten}

    def _choice(self, rules: Mapping[str, Any], path: str) -> dict[str, Any]:
        self._only(rules, frozenset({"enum", "type"}), path)
        values = rules["enum"]
        if not isinstance(values, list) or not values:
            raise Refused(f"The JSON schema is invalid: {path}.enum must be a list of at least one value.")
        if all(isinstance(value, str) for value in values):
            for value in values:
                self._writable(value, path)
            return {"type": "string", "enum": values}
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            return {"enum": values}
        raise Refused(f"The JSON schema is not supported: {path}.enum must hold only strings, or only numbers.")

    def _object(self, rules: Mapping[str, Any], path: str) -> dict[str, Any]:
        properties = rules.get("properties")
        if properties is None:
            if rules.get("required"):
                raise Refused(f"The JSON schema is not supported: {path} requires properties that it does not list.")
            further = rules.get("additionalProperties", True)
            if further is False:
                return {"properties": {}, "required": []}
            return {} if further is True else {"additionalProperties": self.rewritten(further, path)}
        if not isinstance(properties, Mapping):
            raise Refused(f"The JSON schema is invalid: {path}.properties must be an object.")
        required = rules.get("required") or []
        if not isinstance(required, list) or not set(required) <= set(properties):
            raise Refused(f"The JSON schema is not supported: {path} requires properties that it does not list.")
        for name in properties:
            self._writable(name, path)
        # Listed properties are the only ones written, which also keeps any rule on further ones.
        entries = {name: self.rewritten(entry, f"{path}.properties.{name}") for name, entry in properties.items()}
        return {"properties": entries, "required": required}

    def _array(self, rules: Mapping[str, Any], path: str) -> dict[str, Any]:
        return {**rules, "items": self.rewritten(rules.get("items", True), f"{path}.items")}

    def _string(self, rules: Mapping[str, Any], path: str) -> dict[str, Any]:
        rules = dict(rules)
        if (form := rules.pop("format", None)) is not None:
            if form not in _FORMATS or rules:
                raise Refused(f"The JSON schema is not supported: {path}.format {form!r}.")
            rules["pattern"] = _FORMATS[form]
        if "pattern" in rules and len(rules) > 1:
            raise Refused(f"The JSON schema is not supported: {path} has a pattern beside a length.")
        if rules.get("minLength", 0) > rules.get("maxLength", 1 << 30):
            raise Refused(f"The JSON schema is invalid: {path}.minLength is more than its maxLength.")
        return rules

    def _writable(self, text: str, path: str) -> None:
        if wrong := [letter for letter in text if letter in '"\\' or not self._alphabet(letter)]:
            raise Refused(
                f"The JSON schema is not supported: {path} holds {text!r}, whose {wrong[0]!r} this engine cannot "
                "force the model to write."
            )

    def _only(self, rules: Mapping[str, Any], known: frozenset[str], path: str) -> None:
        if unknown := sorted(set(rules) - known):
            raise Refused(f"The JSON schema is not supported: {path}.{unknown[0]} would not bind the answer.")


def _part(rules: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    known: Sequence[str] = list(_OF_TYPE.get(kind, ()))
    return {key: value for key, value in rules.items() if key in known}
