"""The folder that infinity serves: a checkpoint with its ONNX file, fused by Optimum (level 99) and then made int8.

infinity 0.0.78 would fuse it by itself, but calls Optimum in a way that its present version refuses.

.venv-peers/bin/python loadtest/peers/infinity_model.py --checkpoint folder --output folder
"""

import argparse
import json
import shutil
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from optimum.onnxruntime import ORTModelForSequenceClassification, ORTOptimizer
from optimum.onnxruntime.configuration import OptimizationConfig
from transformers import AutoConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    plain, fused = options.output / "plain", options.output / "fused"
    ORTModelForSequenceClassification.from_pretrained(options.checkpoint, export=True).save_pretrained(plain)
    ORTOptimizer.from_pretrained(plain).optimize(OptimizationConfig(optimization_level=99), save_dir=fused)
    quantize_dynamic(
        fused / "model_optimized.onnx",
        options.output / "model_quantized.onnx",
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # it knows no types behind fused operators
    )
    shutil.copy(fused / "config.json", options.output)
    for folder in (plain, fused):
        shutil.rmtree(folder)
    for file in options.checkpoint.iterdir():
        if file.name not in ("model.safetensors", "config.json"):  # it wrote a config.json of its own
            shutil.copy(file, options.output)
    # Transformers 5 names a tokenizer class that this older one lacks; infinity takes unnamed labels for none.
    amend(options.output / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    amend(options.output / "config.json", id2label=AutoConfig.from_pretrained(options.checkpoint).id2label)


def amend(file: Path, **entries: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | entries), encoding="utf-8")


if __name__ == "__main__":
    main()
