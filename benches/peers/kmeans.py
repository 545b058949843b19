"""K-means of the weights of a matrix, beside other packages: time, and error over the exact least.

    pip install coremltools kmeans1d numpy safetensors scikit-learn
    cargo run --release --example time_kmeans -- weight.safetensors    # is run from here, too
    python kmeans.py [--size 4096] [--clusters 16] [--exact] [--threads 1]

`--exact` also runs kmeans1d over all values, which takes minutes at 4096 × 4096; without it errors are relative to the least
one found. A package that is not installed is left out.
"""

import argparse
import json
import os
import pathlib
import subprocess
import tempfile
import time


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--clusters", type=int, default=16)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    for name in ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]:
        os.environ[name] = str(args.threads)
    import numpy as np
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    values = (random.standard_normal((args.size, args.size)) * 0.02).astype(np.float32)
    flat = values.ravel()
    k = args.clusters

    def error(centroids):
        centroids = np.sort(np.asarray(centroids, dtype=np.float64))
        middles = (centroids[1:] + centroids[:-1]) / 2
        total = 0.0
        for piece in np.array_split(flat.astype(np.float64), 64):
            total += ((piece - centroids[np.searchsorted(middles, piece)]) ** 2).sum()
        return total

    results = []

    def run(name, work):
        try:
            start = time.perf_counter()
            centroids = work()
            results.append((name, time.perf_counter() - start, error(centroids)))
        except ImportError as missing:
            print(f"{name}: left out ({missing})")

    def sklearn_lloyd():
        from sklearn.cluster import KMeans

        return KMeans(k, n_init=1, random_state=0).fit(flat[:, None]).cluster_centers_[:, 0]

    def coreml():
        # what its palettization does with one number a centroid
        from coremltools._deps import _kmeans1d

        rounded, counts = np.unique(flat.astype(np.float16), return_counts=True)
        _, centroids = _kmeans1d.cluster(rounded.astype(np.float64), k, weights=counts)
        return centroids

    def exact():
        import kmeans1d

        return kmeans1d.cluster(flat.astype(np.float64), k).centroids

    root = pathlib.Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "weight.safetensors"
        save_file({"fc.weight": values}, path)
        command = ["cargo", "run", "--release", "--quiet", "--example", "time_kmeans", "--"]
        environment = {**os.environ, "RAYON_NUM_THREADS": str(args.threads)}
        ours = subprocess.run(
            [*command, str(path), str(k)], cwd=root, env=environment, check=True, capture_output=True, text=True
        )
        ours = json.loads(ours.stdout)
        results.append(("tersor", ours["seconds"], error(ours["centroids"])))
        results.append(("tersor, codes too", ours["seconds_with_codes"], error(ours["centroids"])))
    run("coremltools (values as f16)", coreml)
    run("scikit-learn, Lloyd", sklearn_lloyd)
    if args.exact:
        run("kmeans1d, exact", exact)
    least = min(error for _, _, error in results)
    print(f"{args.size} × {args.size} f32 into {k} centroids, {args.threads} thread(s)")
    for name, seconds, err in results:
        print(f"{name:30} {seconds:9.3f} s   error {100 * (err / least - 1):+.4f} % over the least")


if __name__ == "__main__":
    main()
