"""What a run will cost before it is run: `python -m harness.plan` with the overrides of the main job."""
