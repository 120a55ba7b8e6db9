"""Time of NF4 and FP4 quantization beside bitsandbytes, same weight, same run, codes compared.

python bench/time_nf4.py
"""

import torch
from record import median_times, save

import qviz


def main() -> None:
    from bitsandbytes.functional import quantize_4bit

    rows = []
    w = torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0))
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for form, double in (("nf4", False), ("nf4", True), ("fp4", False)):
            options = {"format": form, "double_quant": double}

            def ours(options: dict[str, object] = options) -> object:
                return qviz.quantize(w, "nf4", **options).pack()

            def theirs(form: str = form, double: bool = double) -> object:
                return quantize_4bit(w, quant_type=form, compress_statistics=double)

            packed, _ = theirs()
            equal = torch.equal(torch.from_numpy(ours()["codes"]), packed.flatten())
            mine, peer = median_times(ours, theirs, repeats=5)
            rows.append(
                {
                    "format": form + (", double quantization" if double else ""),
                    "threads": threads,
                    "qviz, s": mine,
                    "bitsandbytes, s": peer,
                    "ratio": mine / peer,
                    "bytes": "equal" if equal else "DIFFERENT",
                }
            )
    title = "NF4 and FP4 of 4096×4096 float32 on a CPU, packing included"
    print(save("time_nf4", title, rows).read_text())


if __name__ == "__main__":
    main()
