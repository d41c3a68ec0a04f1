"""Shammah: a terminal assistant on a local language model that learns from its user's ratings.

The names below are the public Python API, described in docs/api.md; everything else may change.
They are imported when they are first used, so that `import shammah` costs nothing and the prompt
appears before torch is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from shammah.version import VERSION

__version__ = VERSION

__all__ = [
    "DPO",
    "Assistant",
    "Backends",
    "ChatExample",
    "Context",
    "Distillation",
    "Factory",
    "FeedbackLoop",
    "Gradients",
    "LoraConfig",
    "Message",
    "ModelSettings",
    "Paths",
    "Reinforcement",
    "Renderer",
    "Result",
    "RewardModeling",
    "RunIdentity",
    "RunLogger",
    "Score",
    "Settings",
    "ShammahError",
    "Stage",
    "SupervisedFineTuning",
    "Workflow",
    "WorkflowError",
    "assistant_message",
    "conditional",
    "describe",
    "dry_run",
    "evaluate",
    "load_base_model",
    "local_completer",
    "loop",
    "open_dataset",
    "parallel",
    "register_hook",
    "register_logger",
    "register_loss",
    "register_renderer",
    "register_scorer",
    "report",
    "run",
    "scorer",
    "stage",
    "stream_loop",
    "system_message",
    "user_message",
    "validate_quality",
    "workflow",
]
"""For type checkers, which do not take names that were given another one for public."""

if TYPE_CHECKING:
    from shammah.assistant import Assistant as Assistant
    from shammah.datasets import ChatExample as ChatExample
    from shammah.datasets import open_dataset as open_dataset
    from shammah.errors import ShammahError as ShammahError
    from shammah.errors import WorkflowError as WorkflowError
    from shammah.evaluation.local_completer import local_completer as local_completer
    from shammah.evaluation.quality import validate_quality as validate_quality
    from shammah.evaluation.registry import register as register_scorer
    from shammah.evaluation.registry import scorer as scorer
    from shammah.evaluation.report import report as report
    from shammah.evaluation.runner import evaluate as evaluate
    from shammah.evaluation.scorer import Score as Score
    from shammah.messages import Message as Message
    from shammah.messages import assistant as assistant_message
    from shammah.messages import system as system_message
    from shammah.messages import user as user_message
    from shammah.models.load import load_base_model as load_base_model
    from shammah.paths import Paths as Paths
    from shammah.recipes.distillation import Distillation as Distillation
    from shammah.recipes.feedback_loop import FeedbackLoop as FeedbackLoop
    from shammah.recipes.preference import DPO as DPO
    from shammah.recipes.reinforcement import Reinforcement as Reinforcement
    from shammah.recipes.reward import RewardModeling as RewardModeling
    from shammah.recipes.sft import SupervisedFineTuning as SupervisedFineTuning
    from shammah.recipes.training_recipe import LoraConfig as LoraConfig
    from shammah.recipes.workflows.context import Backends as Backends
    from shammah.recipes.workflows.context import Context as Context
    from shammah.recipes.workflows.context import Factory as Factory
    from shammah.recipes.workflows.drawing import describe as describe
    from shammah.recipes.workflows.running import Result as Result
    from shammah.recipes.workflows.running import dry_run as dry_run
    from shammah.recipes.workflows.running import run as run
    from shammah.recipes.workflows.stage import Stage as Stage
    from shammah.recipes.workflows.stage import stage as stage
    from shammah.recipes.workflows.workflow import Workflow as Workflow
    from shammah.recipes.workflows.workflow import conditional as conditional
    from shammah.recipes.workflows.workflow import loop as loop
    from shammah.recipes.workflows.workflow import parallel as parallel
    from shammah.recipes.workflows.workflow import stream_loop as stream_loop
    from shammah.recipes.workflows.workflow import workflow as workflow
    from shammah.renderers.base import Renderer as Renderer
    from shammah.renderers.registry import register as register_renderer
    from shammah.settings import ModelSettings as ModelSettings
    from shammah.settings import Settings as Settings
    from shammah.tracking.loggers.base import RunIdentity as RunIdentity
    from shammah.tracking.loggers.base import RunLogger as RunLogger
    from shammah.tracking.loggers.opening import register as register_logger
    from shammah.training.hooks import Gradients as Gradients
    from shammah.training.hooks import register as register_hook
    from shammah.training.losses import register as register_loss

_PLACES = {
    "Assistant": "shammah.assistant:Assistant",
    "assistant_message": "shammah.messages:assistant",
    "Backends": "shammah.recipes.workflows.context:Backends",
    "ChatExample": "shammah.datasets:ChatExample",
    "conditional": "shammah.recipes.workflows.workflow:conditional",
    "Context": "shammah.recipes.workflows.context:Context",
    "describe": "shammah.recipes.workflows.drawing:describe",
    "Distillation": "shammah.recipes.distillation:Distillation",
    "DPO": "shammah.recipes.preference:DPO",
    "dry_run": "shammah.recipes.workflows.running:dry_run",
    "evaluate": "shammah.evaluation.runner:evaluate",
    "Factory": "shammah.recipes.workflows.context:Factory",
    "FeedbackLoop": "shammah.recipes.feedback_loop:FeedbackLoop",
    "Gradients": "shammah.training.hooks:Gradients",
    "load_base_model": "shammah.models.load:load_base_model",
    "LoraConfig": "shammah.recipes.training_recipe:LoraConfig",
    "local_completer": "shammah.evaluation.local_completer:local_completer",
    "loop": "shammah.recipes.workflows.workflow:loop",
    "Message": "shammah.messages:Message",
    "ModelSettings": "shammah.settings:ModelSettings",
    "open_dataset": "shammah.datasets:open_dataset",
    "parallel": "shammah.recipes.workflows.workflow:parallel",
    "Paths": "shammah.paths:Paths",
    "register_hook": "shammah.training.hooks:register",
    "register_logger": "shammah.tracking.loggers.opening:register",
    "register_loss": "shammah.training.losses:register",
    "register_renderer": "shammah.renderers.registry:register",
    "register_scorer": "shammah.evaluation.registry:register",
    "report": "shammah.evaluation.report:report",
    "Reinforcement": "shammah.recipes.reinforcement:Reinforcement",
    "Renderer": "shammah.renderers.base:Renderer",
    "Result": "shammah.recipes.workflows.running:Result",
    "RewardModeling": "shammah.recipes.reward:RewardModeling",
    "RunLogger": "shammah.tracking.loggers.base:RunLogger",
    "run": "shammah.recipes.workflows.running:run",
    "RunIdentity": "shammah.tracking.loggers.base:RunIdentity",
    "Score": "shammah.evaluation.scorer:Score",
    "scorer": "shammah.evaluation.registry:scorer",
    "Settings": "shammah.settings:Settings",
    "ShammahError": "shammah.errors:ShammahError",
    "Stage": "shammah.recipes.workflows.stage:Stage",
    "stage": "shammah.recipes.workflows.stage:stage",
    "stream_loop": "shammah.recipes.workflows.workflow:stream_loop",
    "SupervisedFineTuning": "shammah.recipes.sft:SupervisedFineTuning",
    "system_message": "shammah.messages:system",
    "user_message": "shammah.messages:user",
    "validate_quality": "shammah.evaluation.quality:validate_quality",
    "Workflow": "shammah.recipes.workflows.workflow:Workflow",
    "workflow": "shammah.recipes.workflows.workflow:workflow",
    "WorkflowError": "shammah.errors:WorkflowError",
}


def __getattr__(name: str) -> Any:
    """One of the names, imported now."""
    if name not in _PLACES:
        raise AttributeError(f"module 'shammah' has no attribute {name!r}")
    module, _, own = _PLACES[name].partition(":")
    found = globals()[name] = getattr(importlib.import_module(module), own)
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
