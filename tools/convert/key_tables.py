"""The names that nnU-Net gives to weights, and ours: one table per version, the only place that knows both."""

import re
from collections.abc import Mapping

import numpy as np

from tools.convert.model_folder import ModelError
from tools.convert.onnx_graph import Weights

KeyTable = Mapping[str, str]

# nnU-Net v1, Generic_UNet. The deepest stage is two stacks of one block, the others one stack of two.
V1_KEYS: KeyTable = {
    "conv_blocks_context.{stage}.blocks.{block}.conv.{part}": "enc.{stage}.{block}.0.{part}",
    "conv_blocks_context.{stage}.blocks.{block}.instnorm.{part}": "enc.{stage}.{block}.1.{part}",
    "conv_blocks_context.{stage}.{block}.blocks.0.conv.{part}": "enc.{stage}.{block}.0.{part}",
    "conv_blocks_context.{stage}.{block}.blocks.0.instnorm.{part}": "enc.{stage}.{block}.1.{part}",
    "tu.{level}.weight": "up.{level}.weight",
    "conv_blocks_localization.{level}.{block}.blocks.0.conv.{part}": "dec.{level}.{block}.0.{part}",
    "conv_blocks_localization.{level}.{block}.blocks.0.instnorm.{part}": "dec.{level}.{block}.1.{part}",
    "seg_outputs.{level}.weight": "seg.{level}.weight",
}

# nnU-Net v2, PlainConvUNet.
V2_KEYS: KeyTable = {
    "encoder.stages.{stage}.0.convs.{block}.conv.{part}": "enc.{stage}.{block}.0.{part}",
    "encoder.stages.{stage}.0.convs.{block}.norm.{part}": "enc.{stage}.{block}.1.{part}",
    "decoder.transpconvs.{level}.{part}": "up.{level}.{part}",
    "decoder.stages.{level}.convs.{block}.conv.{part}": "dec.{level}.{block}.0.{part}",
    "decoder.stages.{level}.convs.{block}.norm.{part}": "dec.{level}.{block}.1.{part}",
    "decoder.seg_layers.{level}.{part}": "seg.{level}.{part}",
}


def translate(weights: Weights, table: KeyTable, source: str) -> Weights:
    """The weights under the names of ``app.network.UNet``: tu.0.weight becomes up.0.weight.

    A missing bias is 0: that of a convolution before a norm, which takes any constant away, and, where heads have one,
    that of a transposed convolution.

    Raises:
        ModelError: a weight that the table does not know.
    """
    patterns = [(_pattern(theirs), ours) for theirs, ours in table.items()]
    found, strangers = {}, []
    for key, value in weights.items():
        matches = [(hit, ours) for pattern, ours in patterns if (hit := pattern.fullmatch(key))]
        if not matches:
            strangers.append(key)
        else:
            hit, ours = matches[0]
            found[ours.format(**hit.groupdict())] = value
    if strangers:
        shown = ", ".join(sorted(strangers)[:4])
        raise ModelError(f"{source}: {len(strangers)} weights that the plain U-Net does not have ({shown}, ...)")
    biased = r"(enc|dec)\.\d+\.\d+\.0\.weight" + (r"|up\.\d+\.weight" if "seg.0.bias" in found else "")
    for key in [key for key in found if re.fullmatch(biased, key)]:
        channels = found[key].shape[1 if key.startswith("up.") else 0]
        found.setdefault(key.replace("weight", "bias"), np.zeros(channels, dtype=found[key].dtype))
    return found


def _pattern(template: str) -> re.Pattern[str]:
    """What matches the names of a template: ``tu.{level}.weight`` matches tu.0.weight, tu.1.weight and so on."""
    pattern = re.escape(template).replace(r"\{", "{").replace(r"\}", "}").replace("{part}", "(?P<part>weight|bias)")
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>\\d+)", pattern))
