"""A loop whose length depends on the data, inside and outside of a graph."""

import torch
from torch._higher_order_ops import while_loop


def repeat_while(condition, body, state):
    """``while condition(*state): state = body(*state)``, as one operator while compiling.

    Outside of a graph each test of the condition waits for the device. `body` returns new tensors
    of the shapes and dtypes of `state`. What either function closes over are tensors that share no
    memory.
    """
    state = tuple(t.contiguous() for t in state)
    if torch.compiler.is_compiling():
        return while_loop(condition, body, state)
    while condition(*state):
        state = body(*state)
    return state
