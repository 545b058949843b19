"""GPTQ of a whole decoder to int4 in groups of 64, ours and the usual algorithm in torch, in turn.

    cargo build --release
    python benches/peers/gptq_model.py target/release/tersor MODEL TEXT [samples] [threads]

MODEL is a folder that transformers loads, TEXT a text; both get the same samples of 512 tokens. Both go through the network block
by block, each block seeing what the compressed ones before it give, all in float32. Loading is not timed for torch; for
ours, everything is, from opening the model to the finished folder. Prints seconds, and the peak of resident memory.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time

import torch
import transformers
from gptq import gptq

CONTEXT = 512


def layers_of(block):
    """Linear layers; those with the same input together."""
    attention, mlp = block.self_attn, block.mlp
    return [
        [attention.q_proj, attention.k_proj, attention.v_proj],
        [attention.o_proj],
        [mlp.gate_proj, mlp.up_proj],
        [mlp.down_proj],
    ]


@torch.no_grad()
def theirs(model, samples):
    inputs, kwargs = [], {}

    class Caught(Exception):
        pass

    def catch(_, args, found):
        inputs.append(args[0])
        kwargs.update(found)
        raise Caught

    blocks = model.model.layers
    hook = blocks[0].register_forward_pre_hook(catch, with_kwargs=True)
    for sample in samples:
        try:
            model(torch.tensor([sample]), use_cache=False)
        except Caught:
            pass
    hook.remove()
    for block in blocks:
        groups = layers_of(block)
        hessians = [torch.zeros(group[0].in_features, group[0].in_features) for group in groups]
        hooks = []
        for group, hessian in zip(groups, hessians):
            def add(_, args, hessian=hessian):
                x = args[0].reshape(-1, args[0].shape[-1])
                hessian.addmm_(x.T, x)

            hooks.append(group[0].register_forward_pre_hook(add))
        for x in inputs:
            block(x, **kwargs)
        for hook in hooks:
            hook.remove()
        for group, hessian in zip(groups, hessians):
            hessian /= len(inputs) * CONTEXT
            for layer in group:
                layer.weight.copy_(gptq(layer.weight, hessian, group=64))
        results = [block(x, **kwargs) for x in inputs]
        inputs = [y[0] if isinstance(y, tuple) else y for y in results]


def main():
    binary, folder, text = sys.argv[1:4]
    count = int(sys.argv[4]) if len(sys.argv) > 4 else 128
    threads = int(sys.argv[5]) if len(sys.argv) > 5 else 1
    torch.set_num_threads(threads)
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(open(text).read(), add_special_tokens=False).input_ids
    step = (len(tokens) - CONTEXT) // count
    samples = [tokens[i * step : i * step + CONTEXT] for i in range(count)]
    with tempfile.TemporaryDirectory() as work:
        with open(f"{work}/samples.jsonl", "w") as file:
            file.writelines(json.dumps({"input_ids": sample}) + "\n" for sample in samples)
        arguments = [binary, "compress", folder, "--preset", "int4", "--group-size", "64", "--method", "gptq"]
        arguments += ["--calibration", f"{work}/samples.jsonl", "--samples", str(count), "--context", str(CONTEXT)]
        arguments += ["--threads", str(threads), "-o", f"{work}/out", "-q"]
        begin = time.perf_counter()
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
        ours = time.perf_counter() - begin
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"tersor, {threads} threads: {ours:.1f} s, peak {memory / 1024:.0f} MiB", flush=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    begin = time.perf_counter()
    theirs(model, samples)
    seconds = time.perf_counter() - begin
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"torch, {threads} threads: {seconds:.1f} s, peak {memory / 1024:.0f} MiB; torch / tersor {seconds / ours:.2f}")


os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
main()
