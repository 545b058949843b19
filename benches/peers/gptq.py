"""GPTQ of one 4096 × 4096 layer to int4 in groups of 128, ours and the usual algorithm in torch, in turn.

    cargo bench --bench gptq --no-run
    python benches/peers/gptq.py PATH/TO/gptq-… [size] [rounds]

The Hessian is given to both. Ours also rounds the layer to nearest and measures the output's error of both results, within the
time; "alone" is without that comparison, which torch does not make. Prints medians and their ratios, with 1 and 2 threads.
"""

import os
import statistics
import subprocess
import sys
import time

import torch


def quantize(w, scale):
    return torch.clamp(torch.round(w / scale), -8, 7) * scale


def gptq(weights, hessian, group=128, block=128, damping=0.01):
    """Frantar et al. 2022, as the authors' code and the packages after it do it, in float32."""
    w, h = weights.clone(), hessian.clone()
    cols = w.shape[1]
    h.diagonal().add_(damping * h.diagonal().mean())
    h = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    for first in range(0, cols, block):
        last = min(first + block, cols)
        part, inverse = w[:, first:last].clone(), h[first:last, first:last]
        result, errors = torch.zeros_like(part), torch.zeros_like(part)
        for i in range(last - first):
            column, diagonal = part[:, i], inverse[i, i]
            if (first + i) % group == 0:
                scale = w[:, first + i : first + i + group].abs().amax(1) / 7.5
            q = quantize(column, scale)
            result[:, i] = q
            error = (column - q) / diagonal
            part[:, i:] -= error[:, None] @ inverse[i, i:][None]
            errors[:, i] = error
        w[:, first:last] = result
        w[:, last:] -= errors @ h[first:last, last:]
    return w


def ours(binary, size, threads):
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
    text = subprocess.run(
        [binary, str(size), "2"], env=environment, check=True, capture_output=True, text=True
    ).stdout
    runs = [line.split() for line in text.splitlines() if line.startswith("run:")]
    return [float(words[1]) for words in runs], [float(words[1]) - float(words[3]) for words in runs]


def main():
    binary = sys.argv[1]
    size = int(sys.argv[2]) if len(sys.argv) > 2 else 4096
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    torch.manual_seed(1)
    weights = torch.rand(size, size) * 2 - 1
    inputs = torch.rand(2 * size, size) * 2 - 1
    hessian = inputs.T @ inputs / len(inputs)
    del inputs
    for threads in (1, 2):
        torch.set_num_threads(threads)
        times = {"tersor": [], "alone": [], "torch": []}
        for _ in range(rounds):
            whole, alone = ours(binary, size, threads)
            times["tersor"] += whole
            times["alone"] += alone
            begin = time.perf_counter()
            gptq(weights, hessian)
            times["torch"].append(time.perf_counter() - begin)
        medians = {name: statistics.median(of) for name, of in times.items()}
        ratios = {name: medians["torch"] / of for name, of in medians.items()}
        print(f"{threads} threads: seconds {medians}, torch / ours {ratios}, all {times}", flush=True)


if __name__ == "__main__":
    main()
