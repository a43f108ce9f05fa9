"""For all tests: one thread, since on tensors this small several spend their time in waiting for each other."""

import torch

torch.set_num_threads(1)
