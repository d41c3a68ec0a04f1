"""What a loop goes over: a key of the state or of the configuration, or what a function gives."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from shammah.errors import WorkflowError
from shammah.recipes.workflows.context import Context
from shammah.recipes.workflows.values import is_plain, plain
from shammah.recipes.workflows.workflow import Loop

__all__ = ["items_of"]


async def items_of(node: Loop, context: Context) -> list[Any]:
    """What a loop goes over now.

    Raises:
        WorkflowError: there is no such key, or nothing to go over in it.
    """
    if callable(node.over):
        given = node.over(context)
        return list(await given if inspect.isawaitable(given) else given)
    if node.over in context.state:
        value = context.state[node.over]
    elif isinstance(context.config, Mapping) and node.over in context.config:
        value = context.config[node.over]
    elif not isinstance(context.config, Mapping) and hasattr(context.config, node.over):
        value = getattr(context.config, node.over)
    else:
        raise WorkflowError(
            f"There is no `{node.over}` to go over, in the state or in the configuration."
        )
    if isinstance(value, int) and not isinstance(value, bool):
        return list(range(value))
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        raise WorkflowError(f"`{node.over}` is a {type(value).__name__}, not items to go over.")
    # A copy, so that a body that changes the state does not change what it goes over.
    return [plain(each) if is_plain(each) else each for each in value]
