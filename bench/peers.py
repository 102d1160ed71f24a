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


WORKLOADS = {"eager": eager_workloads}

for threads in map(int, sys.argv[2].split(",")):
    torch.set_num_threads(threads)
    for name in sys.argv[1].split(","):
        for workload, us in WORKLOADS[name]():
            print(workload, "torch-eager", threads, f"{us:.4f}", flush=True)
