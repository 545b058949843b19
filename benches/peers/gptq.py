"""GPTQ of one 4096 × 4096 layer to int4 in groups of 128, or SparseGPT of it, ours and the usual algorithm in torch, in turn.

    cargo bench --bench gptq --no-run
    python benches/peers/gptq.py PATH/TO/gptq-… [size] [rounds] [gptq | 50% | 2:4]

The Hessian is given to both. Ours also makes the plain alternative (rounding to nearest, magnitude pruning) and measures the
output's error of both results, within the time; "alone" is without that comparison, which torch does not make. The first run of
each, for which the system has to find the memory, does not count. Prints medians and their ratios, with 1 and 2 threads.
"""

import os
import statistics
import subprocess
import sys
import time

import torch


def quantize(w, scale):
    return torch.clamp(torch.round(w / scale), -8, 7) * scale


def factor_of_inverse(hessian, damping=0.01):
    h = hessian.clone()
    h.diagonal().add_(damping * h.diagonal().mean())
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)


def gptq(weights, hessian, group=128, block=128):
    """Frantar et al. 2022, as the authors' code and the packages after it do it, in float32."""
    w, h = weights.clone(), factor_of_inverse(hessian)
    cols = w.shape[1]
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


def sparse_gpt(weights, hessian, pattern, block=128):
    """Frantar & Alistarh 2023, the same."""
    w, h = weights.clone(), factor_of_inverse(hessian)
    cols = w.shape[1]
    for first in range(0, cols, block):
        last = min(first + block, cols)
        part, inverse = w[:, first:last].clone(), h[first:last, first:last]
        diagonal = inverse.diagonal()
        result, errors = torch.zeros_like(part), torch.zeros_like(part)
        mask = torch.zeros_like(part, dtype=torch.bool)
        if pattern == "50%":
            saliency = (part / diagonal).square()
            mask = saliency <= saliency.flatten().sort().values[saliency.numel() // 2 - 1]
        for i in range(last - first):
            if pattern == "2:4" and i % 4 == 0:
                saliency = (part[:, i : i + 4] / diagonal[i : i + 4]).square()
                mask.scatter_(1, i + saliency.topk(2, dim=1, largest=False).indices, True)
            column = part[:, i]
            q = torch.where(mask[:, i], 0.0, column)
            result[:, i] = q
            error = (column - q) / diagonal[i]
            part[:, i:] -= error[:, None] @ inverse[i, i:][None]
            errors[:, i] = error
        w[:, first:last] = result
        w[:, last:] -= errors @ h[first:last, last:]
    return w


def ours(binary, size, threads, method):
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
    text = subprocess.run(
        [binary, str(size), "3", method], env=environment, check=True, capture_output=True, text=True
    ).stdout
    runs = [line.split() for line in text.splitlines() if line.startswith("run:")][1:]
    return [float(words[1]) for words in runs], [float(words[1]) - float(words[3]) for words in runs]


def theirs(weights, hessian, method):
    begin = time.perf_counter()
    if method == "gptq":
        gptq(weights, hessian)
    else:
        sparse_gpt(weights, hessian, method)
    return time.perf_counter() - begin


def main():
    binary = sys.argv[1]
    size = int(sys.argv[2]) if len(sys.argv) > 2 else 4096
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    method = sys.argv[4] if len(sys.argv) > 4 else "gptq"
    torch.manual_seed(1)
    weights = torch.rand(size, size) * 2 - 1
    inputs = torch.rand(2 * size, size) * 2 - 1
    hessian = inputs.T @ inputs / len(inputs)
    del inputs
    for threads in (1, 2):
        torch.set_num_threads(threads)
        times = {"tersor": [], "alone": [], "torch": []}
        theirs(weights, hessian, method)
        for _ in range(rounds):
            whole, alone = ours(binary, size, threads, method)
            times["tersor"] += whole
            times["alone"] += alone
            times["torch"].append(theirs(weights, hessian, method))
        medians = {name: statistics.median(of) for name, of in times.items()}
        ratios = {name: medians["torch"] / of for name, of in medians.items()}
        print(f"{threads} threads: seconds {medians}, torch / ours {ratios}, all {times}", flush=True)


if __name__ == "__main__":
    main()
