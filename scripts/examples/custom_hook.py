"""A gradient hook of one's own: which share of the gradient is in the B of the adapter.

    shammah train sft --data faq.csv --plugins scripts/examples/custom_hook.py --hooks norm,halves

It is called at each step, after accumulation and before clipping. What it gives becomes metrics of
the run, `gradients/b_share`. B begins at zero and A at random: first only B has a gradient at all.
"""

import math

from shammah import Gradients, register_hook


def halves(gradients: Gradients) -> dict[str, float]:
    squares = {"lora_A": 0.0, "lora_B": 0.0}
    for name, norm in zip(gradients.names, gradients.norms, strict=True):
        squares["lora_B" if ".lora_B." in name else "lora_A"] += norm**2
    return {"b_share": squares["lora_B"] / math.fsum(squares.values())}


register_hook("halves", halves)
