"""What PyTorch needs for the workloads of bench/run.lua. Prints "workload peer threads microseconds" lines.

usage: peers.py WORKLOAD[,WORKLOAD…] THREADS[,THREADS…]
"""
import statistics
import sys
import time

import torch


def median_us(run, count, seconds=1.0):
    for _ in range(20):
        run()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        begin = time.perf_counter()
        run()
        times.append((time.perf_counter() - begin) * 1e6 / count)
    return statistics.median(times)


def eager_workloads():
    x, w, seed = torch.ones(16), torch.ones(16, requires_grad=True), torch.ones(16)

    def chain():
        y = x
        for _ in range(100):
            y = y * w
        return y

    def forward_backward():
        chain().backward(seed)

    yield "eager-op", median_us(chain, 100)
    yield "eager-op-backward", median_us(forward_backward, 100)


def residual_workloads():
    """The basic block of torchresidual's README: width 64, batch 8; forward without gradients and a whole Adam step."""
    import torch.nn as nn
    from torch_circuit import Circuit, GetInput, SaveInput
    from torchresidual import Apply, Record, ResidualSequential

    class ByHand(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(64, 64), nn.LayerNorm(64)

        def forward(self, x):
            return self.norm(torch.relu(self.linear(x))) + x

    x, target = torch.randn(8, 64), torch.randn(8, 64)
    for peer, model in (
        ("torchresidual", ResidualSequential(Record(name="r"), nn.Linear(64, 64), nn.ReLU(), nn.LayerNorm(64), Apply(record_name="r"))),
        ("torch-circuit", Circuit(SaveInput("r"), nn.Linear(64, 64), nn.ReLU(), nn.LayerNorm(64), GetInput("r"))),
        ("torch-by-hand", ByHand()),
    ):
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)

        def forward():
            with torch.inference_mode():
                model(x)

        def step():
            optimiser.zero_grad(set_to_none=True)
            torch.nn.functional.mse_loss(model(x), target).backward()
            optimiser.step()

        yield "residual-block", median_us(forward, 1), peer
        yield "residual-block-step", median_us(step, 1), peer


WORKLOADS = {"eager": eager_workloads, "residual": residual_workloads}

for threads in map(int, sys.argv[2].split(",")):
    torch.set_num_threads(threads)
    for name in sys.argv[1].split(","):
        for workload, us, *peer in WORKLOADS[name]():
            print(workload, *(peer or ["torch-eager"]), threads, f"{us:.4f}", flush=True)
