"""What changed between two runs, told from their records alone: `python -m harness.compare A B`."""
