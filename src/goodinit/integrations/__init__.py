"""goodinit inside other packages, a file for each: `lightning`, `transformers`, `accelerate`, `tensorboard`.

None of them is imported here; each asks for its package when it is imported itself.
"""
