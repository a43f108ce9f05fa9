"""The signal through a model, measured without changing it: what a pass shows of each layer, and what is wrong, in words."""
