"""Times whole networks: tersor beside llama.cpp and onnxruntime, in one run.

    cargo build --release
    python networks.py decoder --tersor ../../../target/release/tersor --model INT8=FOLDER=FILE.gguf …
    python networks.py encoder --tersor ../../../target/release/tersor --model INT8=FOLDER=FILE.onnx …

Each model is a name, what tersor runs and what the peer runs: make the folders with `tersor compress`, the others with
make_gguf.py and make_onnx.py. Peers take turns with tersor, with 1 and 2 threads; the table has the medians of the rounds.

decoder: 128 tokens one by one after a prompt of 16, and a prompt of 512 of which only the last logits are asked for.
encoder: 1 and 32 sentences of 128 tokens; the peer also pools and normalizes.
tersor rounds the activations of integer weights to 8 bits, as both peers do.
"""

import argparse
import json
import statistics
import subprocess
import time

ROUNDS = 5


def tersor(command, model, threads, *options):
    arguments = [command, "eval", model, "--json", "--threads", str(threads), "--activations", "int8", *options]
    scores = json.loads(subprocess.run(arguments, check=True, capture_output=True).stdout)["scores"]
    return {score["metric"]: score["value"] for score in scores}


class LlamaCpp:
    name = "llama.cpp"
    measures = {"decode": "tokens/s", "prefill": "tokens/s"}

    def __init__(self, path, threads):
        import llama_cpp
        import numpy

        self.lib, self.numpy = llama_cpp, numpy
        self.silent = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.silent, None)
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        assert model, path
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = 1024, 512, 512
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(model, params)
        self.feed(range(16))

    def feed(self, tokens):
        """The likeliest token after these."""
        tokens = list(tokens)
        array = (self.lib.llama_token * len(tokens))(*tokens)
        assert self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(array, len(tokens))) == 0
        logits = self.lib.llama_get_logits_ith(self.context, -1)
        return int(self.numpy.ctypeslib.as_array(logits, shape=(self.vocab,)).argmax())

    def clear(self):
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)

    def run(self):
        self.clear()
        start = time.perf_counter()
        self.feed(i * 7919 % self.vocab for i in range(512))
        prefill = 512 / (time.perf_counter() - start)
        self.clear()
        token = self.feed(i * 7919 % self.vocab for i in range(16))
        start = time.perf_counter()
        for _ in range(128):
            token = self.feed([token])
        return {"decode": 128 / (time.perf_counter() - start), "prefill": prefill}

    @staticmethod
    def ours(command, model, threads):
        options = ["--task", "generation", "--length", "128"]
        decode = tersor(command, model, threads, *options)["tokens_per_second"]
        prefill = tersor(command, model, threads, *options[:-1], "1", "--context", "512")
        return {"decode": decode, "prefill": prefill["prefill_tokens_per_second"]}


class Onnxruntime:
    name = "onnxruntime"
    measures = {"batch 1": "sentences/s", "batch 32": "sentences/s"}

    def __init__(self, path, threads):
        import numpy
        import onnxruntime

        self.numpy = numpy
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def embed(self, batch):
        numpy = self.numpy
        ids = numpy.random.default_rng(0).integers(1000, 30000, (batch, 128))
        mask = numpy.ones_like(ids)
        start = time.perf_counter()
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": numpy.zeros_like(ids)}
        mean = self.session.run(None, inputs)[0].mean(1)
        mean /= numpy.linalg.norm(mean, axis=1, keepdims=True)
        return batch / (time.perf_counter() - start)

    def run(self):
        return {f"batch {batch}": statistics.median(self.embed(batch) for _ in range(40 // batch)) for batch in (1, 32)}

    @staticmethod
    def ours(command, model, threads):
        latency = lambda batch: tersor(command, model, threads, "--task", "latency", "--batch", str(batch))
        return {f"batch {batch}": latency(batch)["samples_per_second"] for batch in (1, 32)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["decoder", "encoder"])
    parser.add_argument("--tersor", required=True)
    parser.add_argument("--model", required=True, action="append", metavar="NAME=FOLDER=FILE")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    peer_class = LlamaCpp if arguments.kind == "decoder" else Onnxruntime
    print(f"| model | measured | threads | tersor | {peer_class.name} | ratio |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for model in arguments.model:
        name, folder, path = model.split("=")
        for threads in (1, 2):
            ours, theirs = [], []
            for _ in range(arguments.rounds):
                # made anew each time: its threads are not to wait while tersor's run
                peer = peer_class(path, threads)
                peer.run()
                theirs.append(peer.run())
                del peer
                ours.append(peer_class.ours(arguments.tersor, folder, threads))
            for measure, unit in peer_class.measures.items():
                a, b = (statistics.median(run[measure] for run in runs) for runs in (ours, theirs))
                print(f"| {name} | {measure} | {threads} | {a:,.1f} {unit} | {b:,.1f} {unit} | {a / b:.2f} |", flush=True)


if __name__ == "__main__":
    main()
