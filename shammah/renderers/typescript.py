"""Tool declarations in TypeScript, as the family of gpt-oss reads them. Knows no tokens.

    namespace functions {

    // The weather of a town
    type get_weather = (_: {
    // Its name
    town: string,
    days?: number, // default: 1
    }) => any;

    } // namespace functions

The chat template of these models defines the text down to its line breaks, and the models were
trained on it: objects within an argument and alternatives (`oneOf`) have breaks and spaces in odd
places, which are kept here on purpose.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shammah.errors import InputError
from shammah.messages import Tool

_SCALARS = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean"}
_LONGEST_ITEM = 50
_BREAK = "\n" + " " * 16
_GAP = " " * 20


def typescript_namespace(name: str, tools: Iterable[Tool]) -> str:
    """All tools as types of one namespace.

    Raises:
        InputError: the parameters of a tool are no JSON schema of an object.
    """
    declared = "".join(_function(tool) for tool in tools)
    return f"## {name}\n\nnamespace {name} {{\n\n{declared}}} // namespace {name}"


def typescript_type(schema: Any) -> str:
    """The type that a JSON schema describes, `any` where it does not say."""
    if not isinstance(schema, Mapping):
        return "any"
    kind = schema.get("type")
    if kind == "array":
        return _array(schema)
    if isinstance(kind, Sequence) and not isinstance(kind, str) and kind:
        return " | ".join(map(str, kind))
    if schema.get("oneOf"):
        return _alternatives(schema["oneOf"])
    if kind == "string" and schema.get("enum"):
        return _quoted(schema["enum"])
    if kind == "string":
        return _nullable("string", schema)
    if kind == "object":
        return _object(schema) if schema.get("properties") else "object"
    return _SCALARS[kind] if isinstance(kind, str) and kind in _SCALARS else "any"


def _function(tool: Tool) -> str:
    properties = tool.parameters.get("properties")
    if not properties:
        return f"// {tool.description}\ntype {tool.name} = () => any;\n\n"
    if not isinstance(properties, Mapping):
        raise InputError(f"The parameters of the tool {tool.name} are no JSON schema of an object.")
    declared = "".join(
        f"{_argument(name, schema, tool.parameters)},\n" for name, schema in properties.items()
    )
    return f"// {tool.description}\ntype {tool.name} = (_: {{\n{declared}}}) => any;\n\n"


def _argument(name: str, schema: Any, parameters: Mapping[str, Any]) -> str:
    said = schema if isinstance(schema, Mapping) else {}
    comment = f"// {said['description']}\n" if said.get("description") else ""
    declared = f"{comment}{_named(name, parameters)}{typescript_type(schema)}"
    if "default" not in said:
        return declared
    default = said["default"]
    if not (isinstance(default, str) and (said.get("enum") or said.get("oneOf"))):
        default = json.dumps(default, ensure_ascii=False)
    comma = "" if said.get("oneOf") and not said.get("enum") else ", "
    return f"{declared}{comma}// default: {default}"


def _array(schema: Mapping[str, Any]) -> str:
    items = schema.get("items")
    if not items:
        return _nullable("any[]", schema)
    kind = items.get("type") if isinstance(items, Mapping) else None
    if isinstance(kind, str) and kind in _SCALARS:
        return _nullable(f"{_SCALARS[kind]}[]", schema)
    inner = typescript_type(items)
    if inner == "object | object" or len(inner) > _LONGEST_ITEM:
        inner = "any"
    return _nullable(f"{inner}[]", schema)


def _alternatives(variants: Sequence[Any]) -> str:
    declared = []
    for variant in variants:
        said = variant if isinstance(variant, Mapping) else {}
        comment = f"// {said['description']}" if said.get("description") else ""
        if "default" in said:
            default = json.dumps(said["default"], ensure_ascii=False)
            comment += f"{_GAP}// default: {default}"
        declared.append(typescript_type(variant) + comment)
    return " | \n".join(declared)


def _object(schema: Mapping[str, Any]) -> str:
    declared = ", ".join(
        f"{_named(name, schema)}{_BREAK}{typescript_type(inner)}"
        for name, inner in schema["properties"].items()
    )
    return f"{{\n{declared}}}"


def _named(name: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required")
    needed = isinstance(required, Sequence) and name in required
    return f"{name}: " if needed else f"{name}?: "


def _quoted(values: Iterable[Any]) -> str:
    return '"' + '" | "'.join(map(str, values)) + '"'


def _nullable(declared: str, schema: Mapping[str, Any]) -> str:
    return f"{declared} | null" if schema.get("nullable") else declared
