"""Data sets: loaded, streamed, and made into messages.

examples = open_dataset("train.jsonl").shuffle(7).take(100).examples("gsm8k")
for example in examples:
    example.prompt, example.answer, example.metadata["final"]
"""

from shammah.datasets.dataset import LazyDataset
from shammah.datasets.examples import Examples
from shammah.datasets.formatters.base import ChatExample
from shammah.datasets.opening import open_dataset

__all__ = ["ChatExample", "Examples", "LazyDataset", "open_dataset"]
