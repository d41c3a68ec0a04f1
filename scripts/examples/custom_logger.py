"""A logger of one's own: the run as a CSV file, a row for each figure.

    shammah train sft --data faq.csv --plugins scripts/examples/custom_logger.py --loggers csv

It is made and used in a thread of its own, so that a slow one holds nothing up; its first error
leaves it out, with a line that says so, and the run goes on.
"""

import csv
from collections.abc import Mapping

from shammah import RunIdentity, RunLogger, register_logger


class CsvLogger(RunLogger):
    tool = "csv"

    def __init__(self, run: RunIdentity) -> None:
        self.path = run.folder / "figures.csv"

    def log_metrics(self, metrics: Mapping[str, int | float], step: int) -> None:
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows((step, name, value) for name, value in metrics.items())


register_logger("csv", CsvLogger)
