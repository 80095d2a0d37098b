"""Training: one short loop for every family, the same tokens in the same order, resumable to the bit on a CPU."""
