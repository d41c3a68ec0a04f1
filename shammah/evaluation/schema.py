"""Scorers of an answer's form: 1 where all of it is what was asked for, else 0.

Knows nothing of whether what stands in the form is right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shammah.errors import UsageError
from shammah.evaluation.scorer import Score
from shammah.libraries import library
from shammah.structure.claims import parse_claims

_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL | re.IGNORECASE)


class JsonSchema:
    """Whether the whole output is JSON that a JSON Schema allows. The draft is that of its
    `$schema`, else the newest; a `$ref` stays within it, and nothing is fetched.

    Args:
        definition: the schema, or the file that holds it.
        fenced: whether the JSON may stand in one code block, with nothing beside it.

    Raises:
        UsageError: jsonschema is not installed, the file cannot be read, or it is no schema.
    """

    name = "json_schema"

    def __init__(self, definition: dict[str, Any] | str, *, fenced: bool = True) -> None:
        validators = library("jsonschema.validators", self.name)
        registry = library("referencing", self.name).Registry()
        schema = _read(Path(definition).expanduser()) if isinstance(definition, str) else definition
        kind = validators.validator_for(schema, default=validators.Draft202012Validator)
        try:
            kind.check_schema(schema)
        except library("jsonschema.exceptions", self.name).SchemaError as error:
            raise UsageError(f"It is no JSON Schema: {error.message}.") from None
        self._validator = kind(schema, registry=registry)
        self._unresolved = library("referencing.exceptions", self.name).Unresolvable
        self._fenced = fenced

    async def score(self, output: str, target: str, metadata: Mapping[str, Any]) -> Score:
        """`detail`: `parses`, and of the first thing that is wrong `problem` and `at`, its path."""
        text = output.strip()
        if self._fenced and (found := _FENCE.fullmatch(text)):
            text = found[1]
        try:
            value = json.loads(text, parse_constant=_refused)
        except (ValueError, RecursionError) as error:
            return Score(0.0, {"parses": False, "problem": str(error)[:200]})
        try:
            first = next(self._validator.iter_errors(value), None)
        except RecursionError:
            return Score(0.0, {"parses": True, "problem": "it is nested too deeply"})
        except self._unresolved as error:
            raise UsageError(f"The schema refers to what is not in it: {error}.") from error
        if first is None:
            return Score(1.0, {"parses": True})
        return Score(
            0.0, {"parses": True, "problem": first.message[:200], "at": first.json_path[:200]}
        )


class ClaimFormat:
    """Whether an output is in the form of `claim_graph`: enough lines `CLAIM[c1]: text`, and no
    line that only looks like a claim or a relation.

    Args:
        least: claims at least, from 1 on.

    Raises:
        UsageError: `least` is none.
    """

    name = "claim_format"

    def __init__(self, *, least: int = 1) -> None:
        if least < 1:
            raise UsageError(f"The least number of claims cannot be {least}.")
        self._least = least

    async def score(self, output: str, target: str, metadata: Mapping[str, Any]) -> Score:
        graph = parse_claims(output)
        right = len(graph.claims) >= self._least and not graph.problems
        detail = {"claims": len(graph.claims), "relations": len(graph.relations)}
        return Score(float(right), {**detail, "problems": list(graph.problems)})


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"The schema {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(f"The schema {path} is no JSON: {error}.") from error


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")
