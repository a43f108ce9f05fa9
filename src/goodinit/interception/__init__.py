"""From a running model to the operators on its weights: intercepted in their order, and whose weight each was given."""
