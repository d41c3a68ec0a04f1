"""The ways to combine adapters, by the names that PEFT gives them. Light: nothing but names."""

from __future__ import annotations

CAT, SVD = "cat", "svd"
"""The weighted sum of the changes: exactly, or its best approximation by a rank."""
OF_ONE_RANK = ("linear", "ties", "dare_ties", "dare_linear", "magnitude_prune")
"""These combine the A's and the B's each by themselves: not the sum, and of one rank only."""
OF_DELTAS = tuple(f"{method}_svd" for method in OF_ONE_RANK if method != "linear")
"""These combine whole changes B A and take the nearest product of a rank."""
METHODS = (CAT, SVD, *OF_ONE_RANK, *OF_DELTAS)
PRUNING = tuple(name for name in METHODS if name.startswith(("ties", "dare", "magnitude")))
"""These drop part of the numbers, and need to be told how much to keep."""
EXACT = 1e-5
"""A relative error below this is the rounding of fp32."""
