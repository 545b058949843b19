"""A Hugging Face folder of a BERT encoder as ONNX: in float32, and its weights quantized by onnxruntime.

    pip install torch transformers onnx onnxscript onnxruntime
    python make_onnx.py FOLDER OUT
"""

import sys
from pathlib import Path

import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import AutoModel

INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


class LastHiddenState(torch.nn.Module):
    def __init__(self, folder):
        super().__init__()
        self.model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

    def forward(self, *inputs):
        return self.model(**dict(zip(INPUTS, inputs, strict=True))).last_hidden_state


def main():
    source, out = map(Path, sys.argv[1:3])
    out.mkdir(parents=True, exist_ok=True)
    ids = torch.randint(1000, 20000, (2, 16))
    mask = torch.ones_like(ids)
    mask[1, 10:] = 0
    batch, length = torch.export.Dim("batch", min=1, max=512), torch.export.Dim("length", min=2, max=512)
    torch.onnx.export(
        LastHiddenState(source),
        (ids, mask, torch.zeros_like(ids)),
        str(out / "f32.onnx"),
        input_names=INPUTS,
        output_names=["last_hidden_state"],
        dynamo=True,
        dynamic_shapes=[[{0: batch, 1: length}] * 3],
        external_data=False,
        optimize=True,
    )
    quantize_dynamic(str(out / "f32.onnx"), str(out / "int8.onnx"), weight_type=QuantType.QInt8)


if __name__ == "__main__":
    main()
