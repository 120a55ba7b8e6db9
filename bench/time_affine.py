"""Time of affine quantization beside torchao and compressed-tensors, same weight, same run.

python bench/time_affine.py
"""

import warnings
from collections.abc import Callable

import torch
from record import median_times, save

import qviz

REPEATS = 7


def torchao_run(w: torch.Tensor, group: int) -> Callable[[], object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization.quant_primitives import (
            MappingType,
            choose_qparams_affine,
            quantize_affine,
        )

    def run() -> object:
        s, z = choose_qparams_affine(
            w, MappingType.SYMMETRIC, (1, group), torch.int8, -8, 7, zero_point_dtype=torch.int32
        )
        return quantize_affine(w, (1, group), s, z, torch.int8, -8, 7)

    return run


def compressed_tensors_run(w: torch.Tensor, group: int) -> Callable[[], object]:
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(num_bits=4, strategy="group", group_size=group)

    def run() -> object:
        groups = w.reshape(w.shape[0], -1, group)
        s, z = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
        return quantize(w, s, z, args, dtype=torch.int8)

    return run


def main() -> None:
    rows = []
    for n in (1024, 4096):
        w = torch.randn(n, n, generator=torch.Generator().manual_seed(0))
        for peer, make in (
            ("torchao", torchao_run),
            ("compressed-tensors", compressed_tensors_run),
        ):
            ours, theirs = median_times(
                lambda w=w: qviz.quantize(w, bits=4, group_size=128), make(w, 128), repeats=REPEATS
            )
            rows.append(
                {
                    "weight": f"{n}×{n}",
                    "peer": peer,
                    "qviz, s": ours,
                    "peer, s": theirs,
                    "ratio": ours / theirs,
                }
            )
    print(
        save("time_affine", "Affine quantization, 4 bits, group 128, symmetric", rows).read_text()
    )


if __name__ == "__main__":
    main()
