"""Networks that a plan cannot describe: read by a list of allowed names, built by nnU-Net's own library, as ONNX."""

import io
import json
import warnings
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import onnx
import torch
from torch import nn

from app.backends.shapes import network_shapes
from app.plan import NetworkPlan, Plan
from tools.convert.model_folder import ModelError, entry, refuse_unless
from tools.convert.onnx_graph import IR_VERSION, OPSET, Weights, store_as_half

_PLACES = (
    "dynamic_network_architectures.architectures.unet",
    "dynamic_network_architectures.architectures.residual_unet",
)
_BLOCKS = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}


def _both_names(module: str, *kinds: type[nn.Module]) -> dict[str, Any]:
    """PyTorch's classes by the two names under which plans know them."""
    names = (
        (f"{place}.{kind.__name__}", kind) for kind in kinds for place in (f"torch.nn.modules.{module}", "torch.nn")
    )
    return dict(names)


_CLASSES = {
    "conv_op": _both_names("conv", nn.Conv2d, nn.Conv3d),
    "norm_op": _both_names("instancenorm", nn.InstanceNorm2d, nn.InstanceNorm3d),
    "nonlin": _both_names("activation", nn.LeakyReLU, nn.ReLU),
}
_PER_STAGE = ("features_per_stage", "kernel_sizes", "strides")
_OPTIONAL = {"conv_bias": False, "dropout_op": None, "dropout_op_kwargs": None, "nonlin_kwargs": None}
_NORM = {"eps": 1e-5, "affine": True}


@dataclass(frozen=True)
class Architecture:
    """A network that ``app.network`` cannot build.

    Attributes:
        class_name: ``PlainConvUNet`` or ``ResidualEncoderUNet``.
        arguments: of the constructor, as in ``plans.json``, classes by their names.
    """

    class_name: str
    arguments: dict[str, Any]

    def to_json(self) -> str:
        """For the metadata of ``network.safetensors``, so that the network can be built again."""
        return json.dumps(asdict(self), sort_keys=True)


def read_architecture(configuration: dict[str, Any], source: str) -> Architecture:
    """The network of a configuration of ``plans.json``, of today's form or of that before 2024.

    Raises:
        ModelError: a network or an argument that is not on the list.
    """
    found = configuration["architecture"] if "architecture" in configuration else _from_old_plans(configuration, source)
    path = entry(found, "network_class_name", source)
    place, _, class_name = str(path).rpartition(".")
    expected = f"expected {' or '.join(_BLOCKS)} of dynamic_network_architectures"
    refuse_unless(place in _PLACES and class_name in _BLOCKS, source, f"network {path}", expected)
    arguments = {**_OPTIONAL, **entry(found, "arch_kwargs", source)}
    blocks = _BLOCKS[class_name]
    required = {"n_stages", *_PER_STAGE, blocks, "n_conv_per_stage_decoder", *_CLASSES, "norm_op_kwargs"}
    if missing := sorted(required - set(arguments)):
        raise ModelError(f"{source}: the network's {', '.join(missing)} is missing")
    if unknown := sorted(set(arguments) - required - set(_OPTIONAL)):
        raise ModelError(f"{source}: the network's argument {', '.join(unknown)} is unknown here; {expected}")
    for key, classes in _CLASSES.items():
        fits = arguments[key] in classes
        refuse_unless(fits, source, f"{key} {arguments[key]}", f"expected one of {', '.join(classes)}")
    for key in ("dropout_op", "dropout_op_kwargs"):
        refuse_unless(not arguments[key], source, f"{key} {arguments[key]}", "expected none")
    return Architecture(class_name, _spread_over_stages(arguments, blocks, source))


def network_plan(architecture: Architecture, in_app: bool, source: str) -> NetworkPlan:
    """The network as a plan says it; ``in_app`` if ``app.network`` can build it from that."""
    arguments = architecture.arguments
    try:
        return NetworkPlan(
            features_per_stage=tuple(arguments["features_per_stage"]),
            strides=tuple(map(tuple, arguments["strides"])),
            kernel_sizes=tuple(map(tuple, arguments["kernel_sizes"])),
            decoder_biases=in_app,
            described_by="plan" if in_app else "onnx",
        )
    except ValueError as error:
        raise ModelError(f"{source}: {error}") from error


def is_plain(architecture: Architecture) -> bool:
    """Whether ``app.network`` has the same layers."""
    arguments = architecture.arguments
    return (
        architecture.class_name == "PlainConvUNet"
        and {*arguments["n_conv_per_stage"], *arguments["n_conv_per_stage_decoder"]} == {2}
        and {"eps": 1e-5, "affine": False, **(arguments["norm_op_kwargs"] or {})} == _NORM
        and arguments["nonlin"].endswith("LeakyReLU")
        and (arguments["nonlin_kwargs"] or {}).get("negative_slope", 0.01) == 0.01
    )


def build(architecture: Architecture, classes: int) -> nn.Module:
    """The network for one channel, untrained, as at inference (without deep supervision)."""
    from dynamic_network_architectures.architectures import unet  # type: ignore[import-untyped]

    arguments = {
        key: _CLASSES[key][value] if key in _CLASSES else value for key, value in architecture.arguments.items()
    }
    kind = getattr(unet, architecture.class_name)
    network: nn.Module = kind(input_channels=1, num_classes=classes, deep_supervision=False, **arguments)
    return network.eval()


def restore(architecture_json: str, classes: int, weights: Weights) -> nn.Module:
    """The trained network of a bundle's ``network.safetensors``.

    Raises:
        ValueError: the weights are not those of the network.
    """
    network = build(Architecture(**json.loads(architecture_json)), classes)
    tensors = {name: torch.from_numpy(value.astype(np.float32)) for name, value in weights.items()}
    if set(tensors) != set(own_weights(network)):
        raise ValueError("the weights are not those of the network in its metadata")
    try:
        network.load_state_dict(tensors, strict=False)  # the library gives each tensor up to four names
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return network


def own_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor of a network once, under the first of its names."""
    return {name: value.detach() for name, value in (*network.named_parameters(), *network.named_buffers())}


def export_onnx(network: nn.Module, plan: Plan, half: bool) -> bytes:
    """The serialised model: input ``image``, output ``logits``, shapes of one tile, as ``onnx_graph`` writes it."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The tracer remarks that asserts on shapes become constant (they are) and that instance norm needs the batch
        # (it is one); the exporter that is to replace it needs a further package.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(network_shapes(plan)[0]),),
            cast(Any, buffer),  # takes files too, its types do not say so
            input_names=["image"],
            output_names=["logits"],
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load_from_string(buffer.getvalue())
    model.ir_version = IR_VERSION
    model.producer_name = "tools.convert"
    model.producer_version = ""
    if half:
        store_as_half(model)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _spread_over_stages(arguments: dict[str, Any], blocks: str, source: str) -> dict[str, Any]:
    """The arguments with one value a stage where the library also takes one for all."""
    stages = int(arguments["n_stages"])
    axes = 2 if arguments["conv_op"].endswith("2d") else 3
    found = dict(arguments)
    for key, count in ((blocks, stages), ("features_per_stage", stages), ("n_conv_per_stage_decoder", stages - 1)):
        found[key] = [int(value) for value in _repeated(arguments[key], count, f"{source}: {key}")]
    for key in ("kernel_sizes", "strides"):
        where = f"{source}: {key}"
        found[key] = [
            [int(side) for side in _repeated(value, axes, where)] for value in _repeated(arguments[key], stages, where)
        ]
    return found


def _repeated(value: Any, count: int, source: str) -> list[Any]:
    """A list of ``count`` values: 2 becomes [2, 2, 2] for a count of 3."""
    values = list(value) if isinstance(value, list | tuple) else [value] * count
    refuse_unless(len(values) == count, source, f"found {value}", f"expected {count} entries")
    return values


def _from_old_plans(configuration: dict[str, Any], source: str) -> dict[str, Any]:
    """Plans before 2024 name the class and leave the rest to the library's defaults of then."""
    class_name = entry(configuration, "UNet_class_name", source)
    convolutions = entry(configuration, "n_conv_per_stage_encoder", source)
    base, largest = (entry(configuration, key, source) for key in ("UNet_base_num_features", "unet_max_num_features"))
    dimensions = len(entry(configuration, "patch_size", source))
    return {
        "network_class_name": f"{_PLACES[0]}.{class_name}",
        "arch_kwargs": {
            "n_stages": len(convolutions),
            "features_per_stage": [min(base * 2**stage, largest) for stage in range(len(convolutions))],
            "conv_op": f"torch.nn.Conv{dimensions}d",
            "kernel_sizes": entry(configuration, "conv_kernel_sizes", source),
            "strides": entry(configuration, "pool_op_kernel_sizes", source),
            _BLOCKS.get(class_name, "n_conv_per_stage"): convolutions,
            "n_conv_per_stage_decoder": entry(configuration, "n_conv_per_stage_decoder", source),
            "conv_bias": True,
            "norm_op": f"torch.nn.InstanceNorm{dimensions}d",
            "norm_op_kwargs": _NORM,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
    }
