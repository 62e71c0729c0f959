"""What a comment of the contract says: prose, rules for a field's values, and lists."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

Json = dict[str, Any]

NUMBER = r"(-?\d+(?:\.\d+)?)"
# Names of folders in a path: see domain/names.py, which also refuses what some file systems reserve.
NAME = r"1 to (\d+) letters, digits, ((?:`\S`(?:, | or )?)+), starting with a letter or digit"
SAME_RULE = "under the same rule as the namespace"
NAMESPACE = "1 to 100 letters, digits, `.`, `_` or `-`, starting with a letter or digit"


@dataclass
class Comment:
    """A comment, split into prose and lists."""

    text: str = ""
    lists: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def parse(cls, raw: str) -> Comment:
        """Parses a leading comment as protoc hands it over."""
        comment, paragraphs = cls(), []
        lines = [line.strip() for line in raw.splitlines() if "buf:lint:ignore" not in line]
        for block in re.split(r"\n{2,}", "\n".join(lines).strip()):
            title, _, items = block.partition(":\n- ")
            if not items:
                paragraphs.append(" ".join(block.split("\n")))
                continue
            pairs = (" ".join(item.split()).partition(": ") for item in items.split("\n- "))
            comment.lists[title] = {key: text for key, _, text in pairs}
        comment.text = "\n\n".join(paragraphs)
        return comment

    def rules(self, schema: Json) -> Json:
        """Adds what the prose says about a field's values to its schema."""
        schema = dict(schema)
        if self.text:
            schema["description"] = self.text
        if "a whole number" in self.text and schema.get("type") == "number":
            schema |= {"type": "integer", "format": "int64"}
        if found := re.search(rf"Range: {NUMBER} to {NUMBER}\.(?!\d)", self.text):
            schema |= {"minimum": yaml.safe_load(found[1]), "maximum": yaml.safe_load(found[2])}
        if found := re.search(r"at least (\d+)\b", self.text):
            schema["minimum"] = int(found[1])
        if schema.get("type") == "string":
            schema |= self._text_rules()
        if found := re.search(rf"Default: (?:{NUMBER}|(true|false)|`([^`]+)`)\.(?!\d)", self.text):
            schema["default"] = found[3] or yaml.safe_load(found[1] or found[2])
        return schema

    def _text_rules(self) -> Json:
        if found := re.search(NAME, self.text.replace(SAME_RULE, NAMESPACE)):
            marks = "".join(sorted(re.findall(r"`(\S)`", found[2]), key=lambda mark: (mark == "-", mark)))
            return {"pattern": f"^[A-Za-z0-9][A-Za-z0-9{marks}]*$", "minLength": 1, "maxLength": int(found[1])}
        if re.search(r"SHA-256 .*\b64 hex digits", self.text):
            return {"pattern": "^[0-9A-Fa-f]{64}$"}
        if re.search("not blank|at least one character", self.text):
            return {"minLength": 1}
        return {}
