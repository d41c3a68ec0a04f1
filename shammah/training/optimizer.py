"""AdamW on an adapter's float32 parameters (Loshchilov & Hutter 2017, arXiv 1711.05101).

The learning rate and all else is told with every step. The state is a flat table of tensors, so
that it can be written as safetensors. Knows nothing about schedules.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from shammah.errors import DivergenceError, TrainingError
from shammah.ports.training_client import AdamParams

_MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW:
    """Steps a table of named parameters whose gradients are sums over a window."""

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        rates: Mapping[str, float] | None = None,
    ) -> None:
        """
        Args:
            rates: of parameters by name, how many times the learning rate is theirs; 1 for others.
        """
        self._parameters = dict(parameters)
        self._steps = 0
        fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters.values())
        of_rate: dict[float, list[torch.nn.Parameter]] = {}
        for name, parameter in self._parameters.items():
            of_rate.setdefault((rates or {}).get(name, 1.0), []).append(parameter)
        self._rates = list(of_rate)
        groups = [{"params": members} for members in of_rate.values()]
        self._optimizer = torch.optim.AdamW(groups, fused=fused)

    @property
    def steps(self) -> int:
        return self._steps

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Those that are stepped, in the order of the table."""
        return list(self._parameters.values())

    @torch.no_grad()
    def step(self, weight: float, params: AdamParams) -> float:
        """Divide the gradients by `weight`, clip, step, clear; their norm before clipping.

        Raises:
            DivergenceError: a gradient is not finite; parameters and moments stay as they were.
            TrainingError: no gradient was gathered.
        """
        gradients = [
            parameter.grad for parameter in self._parameters.values() if parameter.grad is not None
        ]
        if not gradients or weight <= 0:
            raise TrainingError("There is nothing to step on: no gradient was gathered.")
        norm = torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
        )
        total = float(norm) / weight
        if not torch.isfinite(norm):
            self.clear()
            raise DivergenceError(
                f"The gradient is {total} after step {self._steps}.",
                hint="Lower training.learning_rate, or set training.max_grad_norm.",
            )
        factor = 1.0 / weight
        if params.max_grad_norm > 0 and total > params.max_grad_norm:
            factor *= params.max_grad_norm / total
        torch._foreach_mul_(gradients, factor)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group.update(
                lr=params.learning_rate * rate,
                betas=(params.beta1, params.beta2),
                eps=params.eps,
                # AdamW multiplies it by the rate: so all parameters decay alike.
                weight_decay=params.weight_decay / rate,
            )
        self._optimizer.step()
        self._steps += 1
        self.clear()
        return total

    def clear(self) -> None:
        """Drop the gradients gathered since the last step."""
        self._optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, torch.Tensor]:
        """Moments by parameter name (`exp_avg.NAME`), and `steps`; not copies."""
        tensors = {"steps": torch.tensor([self._steps])}
        for name, parameter in self._parameters.items():
            for moment in _MOMENTS:
                if moment in self._optimizer.state[parameter]:
                    tensors[f"{moment}.{name}"] = self._optimizer.state[parameter][moment]
        return tensors

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state` gave.

        Raises:
            TrainingError: the tensors are of other parameters.
        """
        known = {f"{moment}.{name}" for moment in _MOMENTS for name in self._parameters}
        odd = sorted(tensors.keys() - known - {"steps"})
        if odd or "steps" not in tensors:
            raise TrainingError(
                f"The checkpoint's optimiser state is of another adapter: {odd or 'no steps'}.",
                hint="Start the job afresh.",
            )
        self.clear()
        self._optimizer.state.clear()
        self._steps = int(tensors["steps"][0])
        for name, parameter in self._parameters.items():
            if f"exp_avg.{name}" not in tensors:
                continue
            state: dict[str, torch.Tensor] = {
                "step": torch.tensor(float(self._steps), device=parameter.device)
            }
            for moment in _MOMENTS:
                state[moment] = tensors[f"{moment}.{name}"].to(parameter.device).clone()
            self._optimizer.state[parameter] = state
