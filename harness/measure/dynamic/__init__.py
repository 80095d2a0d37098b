"""Dynamic evaluation: any model goes on learning while it is tested, always predicting before it learns."""
