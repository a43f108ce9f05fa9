"""Several processes that initialize one model together: what they tell each other, and parameters that each holds a part of."""
