"""How good a model is: tasks, grades, reports with intervals, and comparisons on the same items."""

from .intervals import Estimate, bootstrap, paired_bootstrap, wilson
from .report import Comparison, Report, compare
from .task import Task, Verdict, evaluate, exact_answer

__all__ = [
    "Comparison", "Estimate", "Report", "Task", "Verdict", "bootstrap", "compare", "evaluate", "exact_answer",
    "paired_bootstrap", "wilson",
]  # fmt: skip
