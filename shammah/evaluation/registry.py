"""Scorers by name, made from a line of text or an object of JSON.

    exact_match                                 by its name alone
    regex:^\\d+$                                 with its main parameter: all behind the colon
    label:SUPPORT,CONTRADICT                    ... a list where it is one
    numeric:relative=0.01,final_line=true       parameters of one without a main one
    {"name": "contains", "ignore_case": true}   any parameters, also written as JSON text
    {"name": "weighted", "scorers": ["token_f1", "rougeL"], "weights": [2, 1]}
    {"name": "regex", "pattern": "^\\d+$", "as": "digits"}    ... and by another name

Knows the scorers of this room; others are registered.
"""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, TypeAlias, get_origin, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from shammah.errors import UsageError
from shammah.evaluation.classification import LabelMatch
from shammah.evaluation.combined import AllOf, AnyOf, Weighted, renamed
from shammah.evaluation.judge import LLMEntailment, LLMJudge, LLMPreference
from shammah.evaluation.numeric import Numeric
from shammah.evaluation.overlap import Bleu, Rouge, TokenF1
from shammah.evaluation.schema import ClaimFormat, JsonSchema
from shammah.evaluation.scorer import Scorer
from shammah.evaluation.semantic import SemanticSimilarity
from shammah.evaluation.structured import CitationValidity, ClaimGraphConsistency
from shammah.evaluation.text_match import CaseInsensitive, Contains, ExactMatch, Regex

Spec: TypeAlias = str | Mapping[str, Any]
"""What a scorer is made from; the syntax stands above."""

RESOURCES: Mapping[str, str] = {
    "embedder": "an EmbeddingClient",
    "llm": "an LLMClient",
}
"""What scorers may need of the caller."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """`main` is the parameter that a colon gives; `resources` the parameters that the caller
    provides; `nested` those that hold the specs of other scorers."""

    factory: Callable[..., Scorer]
    main: str | None = None
    resources: tuple[str, ...] = ()
    nested: tuple[str, ...] = ()
    parameters: type[BaseModel] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", self._model())

    def _model(self) -> type[BaseModel]:
        """The factory's own parameters with their types and defaults."""
        made = self.factory.func if isinstance(self.factory, partial) else self.factory
        hints = get_type_hints(
            made.__init__ if inspect.isclass(made) else made, include_extras=True
        )
        fields: dict[str, Any] = {}
        for name, parameter in inspect.signature(self.factory).parameters.items():
            if name in self.resources:
                continue
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise UsageError(
                    f"A scorer's factory cannot take *{name}: it hides its parameters."
                )
            hint: Any = hints.get(name, Any)
            if name in self.nested:
                hint = list[Any]
            elif name == self.main and get_origin(hint) in (list, tuple, Sequence):
                hint = Annotated[hint, BeforeValidator(_listed)]
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[name] = (hint, Field(default))
        config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
        return create_model("Parameters", __config__=config, **fields)


def register(
    name: str,
    factory: Callable[..., Scorer],
    *,
    main: str | None = None,
    resources: tuple[str, ...] = (),
) -> None:
    """Give a scorer a name.

    Args:
        name: letters, digits and `_`.
        factory: makes it. Its parameters, with their annotations and defaults, are those of a spec.
        main: the parameter that stands behind a colon.
        resources: its parameters that the caller of `scorer` provides: of `RESOURCES`.

    Raises:
        UsageError: the name is taken or no name, or a parameter is not there.
    """
    if not name.isidentifier():
        raise UsageError(f"{name!r} cannot be the name of a scorer.")
    if name in _KINDS:
        raise UsageError(f"There is a scorer {name} already.")
    taken = inspect.signature(factory).parameters
    for parameter in (*resources, *((main,) if main else ())):
        if parameter not in taken:
            raise UsageError(f"What makes {name} has no parameter {parameter!r}.")
    for resource in resources:
        if resource not in RESOURCES:
            raise UsageError(f"There is no resource {resource!r}.", hint=f"Known: {_known()}.")
    _KINDS[name] = _Kind(factory, main, resources)


def scorer(spec: Spec, **resources: Any) -> Scorer:
    """The scorer that a spec describes.

    Args:
        spec: see above.
        resources: what the caller has, by the names of `RESOURCES`; what a scorer does not need it
            does not get.

    Raises:
        UsageError: there is no such scorer or parameter, a value is wrong, a resource is missing,
            or a library of the extra `eval` is.
    """
    for resource in resources:
        if resource not in RESOURCES:
            raise UsageError(f"There is no resource {resource!r}.", hint=f"Known: {_known()}.")
    name, kind, given = _read(spec)
    other = given.pop("as", None)
    if other is not None and not (isinstance(other, str) and other.isidentifier()):
        raise UsageError(f"The scorer {name} cannot be called {other!r}.")
    parameters = _checked(name, kind, given)
    for nested in kind.nested:
        parameters[nested] = [scorer(each, **resources) for each in parameters[nested]]
    for resource in kind.resources:
        if resources.get(resource) is None:
            raise UsageError(f"The scorer {name} needs {RESOURCES[resource]} ({resource}).")
        parameters[resource] = resources[resource]
    made = kind.factory(**parameters)
    return made if other is None else renamed(made, other)


def needs(spec: Spec) -> frozenset[str]:
    """The resources that a spec's scorer needs, its parts included.

    Raises:
        UsageError: there is no such scorer or parameter, or a value is wrong.
    """
    name, kind, given = _read(spec)
    given.pop("as", None)
    parameters = _checked(name, kind, given)
    parts = [needs(each) for nested in kind.nested for each in parameters[nested]]
    return frozenset(kind.resources).union(*parts)


def names() -> list[str]:
    """The names of all scorers, sorted."""
    return sorted(_KINDS)


def _read(spec: Spec) -> tuple[str, _Kind, dict[str, Any]]:
    """The name, the kind and the parameters as they are written."""
    if isinstance(spec, str) and not spec.lstrip().startswith("{"):
        name, colon, rest = spec.strip().partition(":")
        kind = _kind(name)
        if not colon:
            return name, kind, {}
        return name, kind, {kind.main: rest} if kind.main else _pairs(name, rest)
    if isinstance(spec, str):
        try:
            spec = json.loads(spec)
        except ValueError as error:
            raise UsageError(f"The scorer {spec} is no JSON: {error}.") from error
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise UsageError(
            f"{spec!r} is no scorer.", hint='Write its name, or {"name": ..., parameters}.'
        )
    return spec["name"], _kind(spec["name"]), {k: v for k, v in spec.items() if k != "name"}


def _kind(name: str) -> _Kind:
    if name in _KINDS:
        return _KINDS[name]
    near = difflib.get_close_matches(name, _KINDS, n=1, cutoff=0.5)
    raise UsageError(
        f"There is no scorer {name!r}.",
        hint=(f"Did you mean {near[0]}? " if near else "") + f"Scorers: {', '.join(names())}.",
    )


def _pairs(name: str, text: str) -> dict[str, str]:
    found = {}
    for pair in text.split(","):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not (key and equals) or key in found:
            raise UsageError(
                f"The scorer {name} has no parameter {pair.strip()!r}.",
                hint=f"Write {name}:parameter=value,...; {_takes(name)}",
            )
        found[key] = value
    return found


def _checked(name: str, kind: _Kind, given: Mapping[str, Any]) -> dict[str, Any]:
    try:
        model = kind.parameters.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        parameter = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            what = f"has no parameter {parameter!r}"
        elif first["type"] == "missing":
            what = f"needs its parameter {parameter}"
        else:
            what = f"cannot take {first['input']!r} for {parameter}: {first['msg'].lower()}"
        raise UsageError(f"The scorer {name} {what}.", hint=_takes(name)) from None
    return {parameter: getattr(model, parameter) for parameter in kind.parameters.model_fields}


def _takes(name: str) -> str:
    parameters = ", ".join(_KINDS[name].parameters.model_fields)
    return f"It has {parameters}." if parameters else "It has no parameters."


def _listed(value: Any) -> Any:
    """What stands behind a colon, where a list is wanted."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _known() -> str:
    return ", ".join(f"{name} ({what})" for name, what in RESOURCES.items())


def _combined(kind: Callable[..., Scorer]) -> _Kind:
    return _Kind(kind, nested=("scorers",))


_KINDS: dict[str, _Kind] = {
    "exact_match": _Kind(ExactMatch),
    "case_insensitive": _Kind(CaseInsensitive),
    "contains": _Kind(Contains),
    "regex": _Kind(Regex, main="pattern"),
    "numeric": _Kind(Numeric),
    "token_f1": _Kind(TokenF1),
    "bleu": _Kind(Bleu),
    **{kind: _Kind(partial(Rouge, kind)) for kind in ("rouge1", "rouge2", "rougeL")},
    "semantic_similarity": _Kind(SemanticSimilarity, resources=("embedder",)),
    "llm_judge": _Kind(LLMJudge, main="criteria", resources=("llm",)),
    "llm_preference": _Kind(LLMPreference, resources=("llm",)),
    "llm_entailment": _Kind(LLMEntailment, resources=("llm",)),
    "citation_validity": _Kind(CitationValidity),
    "claim_graph": _Kind(ClaimGraphConsistency),
    "json_schema": _Kind(JsonSchema, main="definition"),
    "claim_format": _Kind(ClaimFormat),
    "label": _Kind(LabelMatch, main="labels"),
    "all_of": _combined(AllOf),
    "any_of": _combined(AnyOf),
    "weighted": _combined(Weighted),
}
