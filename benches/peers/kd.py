"""Knowledge distillation of 8192 × 32000 logits, value and gradient: ours and PyTorch's on the CPU, in turn.

    cargo bench --bench kd --no-run
    python benches/peers/kd.py PATH/TO/kd-… [rows] [classes] [rounds]

Both take 0.9 of the forward KL at a temperature of 2 (times its square) and 0.1 of the labels' cross-entropy, as `mean` over rows, in
float32. PyTorch's is the usual code of its functions, with autograd's gradient. The values are compared. Prints medians and their
ratio, and the peak memory of both (PyTorch's is this process's: the arithmetic that made the logits is in it).
"""

import os
import resource
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F


def kd(student, teacher, labels, alpha=0.9, temperature=2.0):
    soft = F.kl_div(
        F.log_softmax(student / temperature, 1), F.softmax(teacher / temperature, 1), reduction="batchmean"
    )
    return alpha * temperature**2 * soft + (1 - alpha) * F.cross_entropy(student, labels)


def ours(binary, rows, classes, threads):
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
    text = subprocess.run(
        [binary, str(rows), str(classes), "2"], env=environment, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    runs = [line.split() for line in text if line.startswith("run:")]
    # the first run makes the system find the memory
    return float(runs[-1][1]), float(runs[-1][4]), text[-1]


def main():
    binary = sys.argv[1]
    rows, classes, rounds = (int(a) if a else d for a, d in zip(sys.argv[2:5] + [""] * 3, (8192, 32000, 3)))

    def logits(seed):
        i, j = torch.arange(rows)[:, None], torch.arange(classes)[None]
        return ((i * 31 + j * 7919 + seed) % 1013).to(torch.float32) / 100 - 5

    student, teacher = logits(0).requires_grad_(), logits(517)
    labels = torch.arange(rows) * 37 % classes
    for threads in (1, 2):
        torch.set_num_threads(threads)
        times = {"tersor": [], "torch": []}
        for _ in range(rounds):
            seconds, value, memory = ours(binary, rows, classes, threads)
            times["tersor"].append(seconds)
            for keep in (False, True):
                student.grad = None
                begin = time.perf_counter()
                loss = kd(student, teacher, labels)
                loss.backward()
                seconds = time.perf_counter() - begin
                if keep:
                    times["torch"].append(seconds)
            assert abs(loss.item() - value) < 1e-4 * abs(value), (loss.item(), value)
        medians = {name: statistics.median(of) for name, of in times.items()}
        ratio = medians["torch"] / medians["tersor"]
        print(f"{threads} threads: {medians}, torch / tersor {ratio:.2f}, all {times}")
        print(f"tersor: {memory}; torch: peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB", flush=True)


main()
