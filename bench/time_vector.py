"""Time of k-means beside scikit-learn: same vectors, same start, same number of rounds, same run.

python bench/time_vector.py
"""

import warnings

import torch
from record import median_times, save
from sklearn.cluster import KMeans

import qviz

ROUNDS = 10


def main() -> None:
    warnings.simplefilter("ignore")  # that ten rounds do not converge is meant
    rows = []
    w = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    for dim, bits in ((2, 4), (4, 8), (8, 8)):
        x = w.reshape(-1, dim)
        start = x[:: len(x) // 2**bits][: 2**bits].clone()
        peer = KMeans(
            2**bits, init=start.numpy(), n_init=1, max_iter=ROUNDS, tol=0, algorithm="lloyd"
        )
        options = {"dim": dim, "bits": bits, "iters": ROUNDS, "row_scale": False}
        ours, theirs = median_times(
            lambda options=options, start=start: qviz.quantize(
                w, "vector", start=start[None], **options
            ),
            lambda peer=peer, x=x: peer.fit(x.numpy()),
        )
        rows.append(
            {
                "vectors": f"{len(x)} of {dim}, {2**bits} entries",
                "qviz, s": ours,
                "scikit-learn, s": theirs,
                "ratio": ours / theirs,
            }
        )
    title = f"Vector codebooks, {ROUNDS} rounds of Lloyd's algorithm on a 1024×1024 weight"
    print(save("time_vector", title, rows).read_text())


if __name__ == "__main__":
    main()
