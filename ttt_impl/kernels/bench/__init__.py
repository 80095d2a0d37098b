"""Proof on a GPU in one command: are the kernels right there, and how fast are they next to others?

    python -m ttt_impl.kernels.bench [--quick] [--official PATH] [--out FOLDER]

work.py          what is timed: learner, task, shape; the plan of a run
floors.py        the time that no kernel can beat, from bytes, products and the chain of mini-batches
correctness.py   the errors of every kernel over lengths and head dimensions, beside their bounds
candidates.py    who takes part in a comparison, and why others cannot
clock.py         CUDA events, and turns: A B A B
records.py       rows of JSON, typed, with what they came from
table.py         a Markdown table, drawn from the records alone
"""
