"""QLoRA's frozen product against bitsandbytes' own training path, on a CPU."""

import torch

import qviz
from exactness import Tally, against, equal
from qviz.methods.qlora import qlora


def _weights() -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    trained = qviz.load_layer(None, "model.layers.1.mlp.down_proj")  # [256, 1024] bfloat16
    w = torch.randn(96, 320, generator=g) * 0.05
    return [trained, trained.float(), w, w.bfloat16(), w.half()]


@against(
    "bitsandbytes",
    method="qlora",
    what="output and gradient of the inputs before training, NF4 with and without second constants",
)
def frozen_product() -> Tally:
    import bitsandbytes as bnb

    g = torch.Generator().manual_seed(4)
    pairs = []
    for w in _weights():
        for double in (True, False):
            packed, state = bnb.functional.quantize_4bit(
                w.contiguous(), blocksize=64, quant_type="nf4", compress_statistics=double
            )
            x = torch.randn(2, 7, w.shape[1], generator=g).to(w.dtype)
            upstream = torch.randn(2, 7, w.shape[0], generator=g).to(w.dtype)
            ours, theirs = (x.clone().requires_grad_() for _ in range(2))
            a = qlora(w, double_quant=double)(ours)
            b = bnb.matmul_4bit(theirs, packed.t(), quant_state=state)
            a.backward(upstream)
            b.backward(upstream)
            pairs += [(a.detach(), b.detach()), (ours.grad, theirs.grad)]
    return equal(pairs)
