"""Published tables of tensors' names and shapes, in PyTorch's layout, and published counts of parameters."""

import json
from pathlib import Path

# {model: {"params": number of parameters, "shapes": {tensor: shape}}}
TABLES = json.loads((Path(__file__).parent / "published_tables.json").read_text())
PARAMETER_COUNTS = {
    "sd21_unet": 865_910_724,
    "sd21_text": 340_387_840,
    "clip_b16": 149_620_737,
    "clip_l14": 427_616_513,
    "clip_l14_336": 427_944_193,
    "clip_rn50": 102_007_137,
    "clip_rn101": 119_688_033,
    "clip_rn50x4": 178_300_601,
}
