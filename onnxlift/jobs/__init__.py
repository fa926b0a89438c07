"""Jobs: data of any size explained chunk by chunk, so that a process that dies costs the chunk it was at."""

from onnxlift.jobs.run import ENGINES, Outcome, run
from onnxlift.jobs.stores import check_out
from onnxlift.jobs.task import Task

__all__ = ["ENGINES", "Outcome", "Task", "check_out", "run"]
