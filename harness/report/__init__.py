"""Tables, figures and a page from the records of a run: `render(folder)`, or `python -m harness.report FOLDER`."""

from harness.report.page import render, terminal_summary

__all__ = ["render", "terminal_summary"]
