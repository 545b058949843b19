"""A Hugging Face folder of SmolLM2 as GGUF files: F16, and Q8_0 and Q4_0 by llama.cpp's own quantizer.

    pip install -r requirements.txt
    python make_gguf.py FOLDER TOKENIZER.gguf OUT

TOKENIZER.gguf gives nothing but the tokenizer's lists: any GGUF of the same model will do.
"""

import ctypes
import json
import sys
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from safetensors.numpy import load_file

NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def interleave(w, heads):
    """Hugging Face keeps the two halves of a head's rotary pairs apart, GGUF side by side."""
    rows, columns = w.shape
    return w.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def main():
    source, tokenizer, out = map(Path, sys.argv[1:4])
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    writer = gguf.GGUFWriter(str(out / "f16.gguf"), "llama")
    writer.add_name(source.name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    fields = gguf.GGUFReader(tokenizer).fields
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(fields["tokenizer.ggml.tokens"].contents())
    writer.add_token_types(fields["tokenizer.ggml.token_type"].contents())
    writer.add_token_merges(fields["tokenizer.ggml.merges"].contents())
    for name, w in load_file(source / "model.safetensors").items():
        if name == "model.embed_tokens.weight":
            to = "token_embd.weight"
        elif name == "model.norm.weight":
            to = "output_norm.weight"
        else:
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            to = f"blk.{layer}.{NAMES[part]}.weight"
            if part == "self_attn.q_proj":
                w = interleave(w, config["num_attention_heads"])
            if part == "self_attn.k_proj":
                w = interleave(w, config["num_key_value_heads"])
        writer.add_tensor(to, np.ascontiguousarray(w.astype(np.float32) if w.ndim == 1 else w))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for kind in ("Q8_0", "Q4_0"):
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
        target = out / f"{kind.lower()}.gguf"
        source_bytes, target_bytes = str(out / "f16.gguf").encode(), str(target).encode()
        failed = llama_cpp.llama_model_quantize(source_bytes, target_bytes, ctypes.byref(params))
        assert failed == 0, target
        print(target, target.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
