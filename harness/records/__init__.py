"""What is kept of a measurement: typed, versioned rows with raw values, from which every report is drawn.

A run folder holds one `records.jsonl`, only ever appended to, one JSON object a line. Each row says what was
measured (`kind` and its `values`), of which model and seed, how it ended (`status`), under which conditions
(what a comparison must hold equal) and where it comes from (`provenance`). The NLL of every document and
position lies beside it as Parquet, named by the row. `results/README.md` describes the schema to readers.
"""

from harness.records.costs import Benchmark, Decode, Finish, FirstToken, Prefill, Timed, TrainStep
from harness.records.models import Check, Gate, Loaded, Training, Tuning
from harness.records.rows import SCHEMA_VERSION, Conditions, Record, Status, from_json, to_json
from harness.records.scores import Diagnostics, Dynamic, FixedTarget, LmEval, PositionCurve, Recall, TextRecall, Window
from harness.records.store import RecordStore
from harness.records.values import Values

__all__ = [
    "SCHEMA_VERSION",
    "Benchmark",
    "Check",
    "Conditions",
    "Decode",
    "Diagnostics",
    "Dynamic",
    "Finish",
    "FirstToken",
    "FixedTarget",
    "Gate",
    "LmEval",
    "Loaded",
    "PositionCurve",
    "Prefill",
    "Recall",
    "Record",
    "RecordStore",
    "Status",
    "TextRecall",
    "Timed",
    "TrainStep",
    "Training",
    "Tuning",
    "Values",
    "Window",
    "from_json",
    "to_json",
]
