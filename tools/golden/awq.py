"""Vectors of two AWQ implementations for the fast tests, on one small problem made of integers.

python tools/golden/awq.py llm_awq CHECKOUT     of github.com/mit-han-lab/llm-awq at d6e797a
python tools/golden/awq.py autoawq CHECKOUT     of github.com/casper-hansen/AutoAWQ at 88e4c76

Only their search functions run, on a CPU in float32; modules with CUDA kernels that they import
and do not need here are left out.
"""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
sys.path[0] = str(ROOT / "tests")  # not this folder: its hqq.py would pass for the package

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from inputs import golden_layer  # noqa: E402
from torch import nn  # noqa: E402

GROUP = 32


class Absent(ModuleType):
    """Whatever is imported from it is a class of which nothing is an instance."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *args: None})


def package(checkout: Path, *absent: str) -> None:
    """Make `awq` importable from a checkout, with empty modules for those that are absent."""
    for name in ("awq", "awq.quantize", "awq.utils", "awq.modules"):
        module = ModuleType(name)
        module.__path__ = [str(checkout / name.replace(".", "/"))]
        sys.modules[name] = module
    for name in absent:
        sys.modules[name] = Absent(name)


def llm_awq(checkout: Path) -> dict[str, np.ndarray]:
    package(checkout, "awq.quantize.qmodule")
    scale = import_module("awq.quantize.auto_scale")
    clip = import_module("awq.quantize.auto_clip")
    quantizer = import_module("awq.quantize.quantizer")
    w, x = golden_layer()
    out = {}
    for bits in (4, 3):
        options = {"zero_point": True, "q_group_size": GROUP}
        found = scale.auto_scale_block(*block_with(w, x), bits, options, features(x))
        s = next(s for _, names, s in found if names == ("self_attn.o_proj",))
        scaled = w * s
        limit = clip.auto_clip_layer(scaled, x / s, bits, options)  # [out, groups, 1]
        groups = scaled.reshape(len(w), -1, GROUP)
        clipped = torch.clamp(groups, -limit, limit).reshape(w.shape)
        # this function returns scales and zeros reshaped by the rows of the groups
        _, step, zero = quantizer.pseudo_quantize_tensor(
            clipped.reshape(-1, GROUP), n_bit=bits, get_scale_zp=True, **options
        )
        codes = (torch.round(clipped.reshape(-1, GROUP) / step) + zero).clamp(0, 2**bits - 1)
        out |= {
            f"{bits}/scale": s.numpy(),
            f"{bits}/limit": limit.squeeze(-1).numpy(),
            f"{bits}/step": step.reshape(len(w), -1).numpy(),
            f"{bits}/zero": zero.reshape(len(w), -1).byte().numpy(),
            f"{bits}/codes": codes.reshape(w.shape).byte().numpy(),
        }
    return out


def block_with(w: torch.Tensor, x: torch.Tensor) -> tuple[nn.Module, dict]:
    """A decoder layer whose o_proj is the problem, and what its attention needs besides inputs."""
    n = len(w)
    config = transformers.LlamaConfig(
        hidden_size=n, intermediate_size=n, num_attention_heads=4, num_key_value_heads=4
    )
    config._attn_implementation = "eager"
    block = transformers.models.llama.modeling_llama.LlamaDecoderLayer(config, 0)
    with torch.no_grad():
        block.self_attn.o_proj.weight.copy_(w)
    angles = torch.ones(1, len(x), n // 4)
    return block, {"position_embeddings": (angles, angles * 0), "attention_mask": None}


def features(x: torch.Tensor) -> dict[str, torch.Tensor]:
    names = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
    return {name: x.unsqueeze(0).clone() for name in names}


class Copied(nn.Linear):
    """The search keeps the weights by `.cpu()`, which on a CPU is no copy: there the first
    candidate's factors would stay in the weights of all the others. On a GPU they do not."""

    def state_dict(self, *args: object, **kwargs: object) -> dict:
        return {name: value.clone() for name, value in super().state_dict(*args, **kwargs).items()}


def autoawq(checkout: Path) -> dict[str, np.ndarray]:
    package(checkout, "awq.utils.calib_data", "awq.utils.utils", "awq.modules.linear",
            "awq.modules.act", "awq.quantize.scale")  # fmt: skip
    quantizer = import_module("awq.quantize.quantizer").AwqQuantizer
    w, x = golden_layer()
    out = {}
    for bits in (4, 3):
        linear = Copied(*w.T.shape, bias=False)
        with torch.no_grad():
            linear.weight.copy_(w)
        bare = object.__new__(quantizer)
        settings = {
            "w_bit": bits, "group_size": GROUP, "zero_point": True, "duo_scaling": True,
            "max_chunk_memory": 1 << 30, "n_parallel_calib_samples": None,
        }  # fmt: skip
        bare.__dict__ |= settings
        parent = nn.Module()
        parent.linear = linear
        parent.before = nn.Identity()
        found = quantizer._search_best_scale(bare, parent, parent.before, [linear], x)
        out[f"{bits}/scale"] = found[2].numpy()
    return out


def main() -> None:
    name, checkout = sys.argv[1], Path(sys.argv[2])
    out = {"llm_awq": llm_awq, "autoawq": autoawq}[name](checkout)
    path = ROOT / "tests" / "golden" / f"awq_{name}.npz"
    commit = {"llm_awq": "mit-han-lab/llm-awq d6e797a", "autoawq": "casper-hansen/AutoAWQ 88e4c76"}
    origin = (
        f"tools/golden/awq.py, {commit[name]}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )
    np.savez_compressed(path, origin=np.array(origin), **out)
    sys.stdout.write(f"{path}: {path.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
