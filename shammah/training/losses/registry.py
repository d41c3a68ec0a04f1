"""Losses by name, with their parameters checked.

    get("dpo")
    get("dpo", beta=0.2, variant="ipo")          get("dpo:beta=0.2,variant=ipo")
    get("0.55 cross_entropy, 0.1 topological")   # composite
    get("1 ppo(clip_low=0.2,clip_high=0.3), 0.05 kl_divergence")
    register("mine", fn); get("mine"); get(fn)

A loss's parameters are those of the function that makes it, with their types and defaults.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeAlias, cast, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from shammah.errors import TrainingError
from shammah.training.losses import likelihood, policy, preference, structured
from shammah.training.losses.composite import mixed
from shammah.training.losses.loss import Function, Loss

Factory: TypeAlias = Callable[..., Loss]
Spec: TypeAlias = "str | Loss | Function | Mapping[str, object]"
"""A name, a name with parameters behind a colon, weights with names, `{"name": ..., parameters}`, a
loss, or a function of (logprobs, inputs)."""

_PART = re.compile(
    r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*\*?\s*([A-Za-z_]\w*)(?:\(([^()]*)\))?"
)
"""`0.55 cross_entropy`, `0.55*cross_entropy`, `0.9 ppo(clip_high=0.3)`."""
_COMMA = re.compile(r",(?![^(]*\))")
"""Between parts, not within parentheses."""

_FACTORIES: dict[str, Factory] = {
    "cross_entropy": likelihood.cross_entropy,
    "mse": likelihood.mse,
    "kl_divergence": likelihood.kl_divergence,
    "importance_sampling": policy.importance_sampling,
    "ppo": policy.ppo,
    "clipped_advantage": policy.clipped_advantage,
    "dpo": preference.dpo,
    "preference": preference.dpo,
    "npo": preference.npo,
    "kto": preference.kto,
    "reward_bradley_terry": preference.reward_bradley_terry,
    "topological": structured.topological,
    "chirality": structured.chirality,
    "citation_validity": structured.citation_validity,
}


def register(name: str, made: Factory | Loss | Function) -> None:
    """Give a loss a name.

    Args:
        made: a loss, a function of (logprobs, inputs), or what makes a loss from keyword
            parameters.

    Raises:
        TrainingError: the name is taken or no name, or it is none of these.
    """
    if not name.isidentifier():
        raise TrainingError(f"{name!r} cannot be the name of a loss.")
    if name in _FACTORIES:
        raise TrainingError(f"There is a loss {name} already.")
    if isinstance(made, Loss) or (callable(made) and _is_function(made)):
        loss = made if isinstance(made, Loss) else Loss(cast("Function", made))
        _FACTORIES[name] = lambda: loss
        return
    if not callable(made) or any(
        parameter.kind is not parameter.KEYWORD_ONLY
        for parameter in inspect.signature(made).parameters.values()
    ):
        raise TrainingError(
            f"{name} is neither a loss nor a function of (logprobs, inputs).",
            hint="What makes a loss has keyword parameters alone.",
        )
    _FACTORIES[name] = cast("Factory", made)


def get(spec: Spec, **parameters: object) -> Loss:
    """The loss that a spec stands for.

    Raises:
        TrainingError: there is no loss of that name, or it has no such parameter or value; the
            nearest one is named.
    """
    if isinstance(spec, str) and not parameters:
        return _by_text(spec.strip())
    if isinstance(spec, Mapping):
        given = {key: value for key, value in spec.items() if key != "name"}
        return get(str(spec.get("name")), **given, **parameters)
    if isinstance(spec, str):
        return _made(spec, parameters)
    if parameters:
        raise TrainingError(f"A loss that is there already takes no {', '.join(parameters)}.")
    return spec if isinstance(spec, Loss) else Loss(spec)


def composite(losses: Sequence[Spec], weights: Sequence[float] | None = None) -> Loss:
    """Several losses of the same datums, mixed; see `mixed`.

    Args:
        losses: as `get` takes them.
        weights: one for each; 1 where they are not given.

    Raises:
        TrainingError: a loss is not known or there twice, or they are no mixture.
    """
    parts: dict[str, Loss] = {}
    for each in losses:
        name = name_of(each)
        if name in parts:
            raise TrainingError(f"{name} is in the mixture twice.", hint="Add up its weights.")
        parts[name] = get(each)
    return mixed(parts, [1.0] * len(parts) if weights is None else weights)


def names() -> list[str]:
    """The names of all losses, sorted."""
    return sorted(_FACTORIES)


def name_of(spec: Spec) -> str:
    """What a loss is called in a report."""
    if isinstance(spec, str):
        return spec.strip().partition(":")[0]
    if isinstance(spec, Mapping):
        return str(spec.get("name"))
    return getattr(spec, "__name__", "loss")


@cache
def _by_text(text: str) -> Loss:
    if text[:1] in tuple("0123456789.+-"):
        parts = [_PART.fullmatch(part.strip()) for part in _COMMA.split(text)]
        if None in parts:
            raise TrainingError(
                f"{text!r} is no mixture of losses.",
                hint="Write weights and names: 0.9 cross_entropy, 0.1 chirality.",
            )
        pairs = [
            (float(part[1]), f"{part[2]}:{part[3]}" if part[3] else part[2])
            for part in parts
            if part is not None
        ]
        return composite([name for _, name in pairs], [weight for weight, _ in pairs])
    name, colon, rest = text.partition(":")
    given: dict[str, object] = {}
    for pair in rest.split(",") if colon else ():
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not (key and equals) or key in given:
            _factory(name)
            raise TrainingError(
                f"The loss {name} cannot take {pair.strip()!r}.",
                hint=f"Write {name}:parameter=value,...; {_takes(name)}",
            )
        given[key] = value
    return _made(name, given)


def _factory(name: str) -> Factory:
    if name in _FACTORIES:
        return _FACTORIES[name]
    near = difflib.get_close_matches(name, _FACTORIES, n=1, cutoff=0.5)
    raise TrainingError(
        f"There is no loss named {name!r}.",
        hint=(f"Did you mean {near[0]}? " if near else "") + f"There are: {', '.join(names())}.",
    )


def _made(name: str, given: Mapping[str, object]) -> Loss:
    factory = _factory(name)
    try:
        checked = _parameters(factory).model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        parameter = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            known = _parameters(factory).model_fields
            near = difflib.get_close_matches(parameter, known, n=1, cutoff=0.5)
            what = f"has no parameter {parameter!r}"
            hint = (f"Did you mean {near[0]}? " if near else "") + _takes(name)
        else:
            what = f"cannot take {first['input']!r} for {parameter}: {first['msg'].lower()}"
            hint = _takes(name)
        raise TrainingError(f"The loss {name} {what}.", hint=hint) from None
    return factory(**{key: getattr(checked, key) for key in type(checked).model_fields})


def _takes(name: str) -> str:
    fields = _parameters(_FACTORIES[name]).model_fields
    known = ", ".join(f"{key} ({field.default})" for key, field in fields.items())
    return f"It has {known}." if known else "It has no parameters."


@cache
def _parameters(factory: Factory) -> type[BaseModel]:
    hints = get_type_hints(factory, include_extras=True)
    fields: dict[str, Any] = {
        name: (
            hints.get(name, Any),
            ... if parameter.default is parameter.empty else parameter.default,
        )
        for name, parameter in inspect.signature(factory).parameters.items()
    }
    config = ConfigDict(extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)
    return create_model("Parameters", __config__=config, **fields)


def _is_function(made: Callable[..., Any]) -> bool:
    """Whether it takes (logprobs, inputs)."""
    wanted = [
        parameter
        for parameter in inspect.signature(made).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
    ]
    return len(wanted) == 2
