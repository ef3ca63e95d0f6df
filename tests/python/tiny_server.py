"""A real model server: llama.cpp's (from xllamacpp) with a model of random weights, half a megabyte.

Usage: tiny_server.py MODEL_FILE PORT. Writes the model if it is missing, serves it as "tiny-random", runs until killed.
"""
import os
import sys
import time

import gguf
import numpy

LAYERS, WIDTH, HEADS, FORWARD, CONTEXT = 2, 64, 4, 128, 2048


def vocabulary():
    """Three control tokens and one token per byte: any text can be read and written."""
    tokens = [b"<unk>", b"<s>", b"</s>"] + [f"<0x{byte:02X}>".encode() for byte in range(256)]
    kind = gguf.TokenType
    return tokens, [kind.UNKNOWN, kind.CONTROL, kind.CONTROL] + [kind.BYTE] * 256


def write_model(path):
    chance = numpy.random.default_rng(7)
    writer = gguf.GGUFWriter(path + ".part", "llama")
    writer.add_name("tiny-random")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    tokens, kinds = vocabulary()
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)

    def weights(*shape):
        return (chance.standard_normal(shape) * 0.05).astype(numpy.float32)

    ones = numpy.ones(WIDTH, dtype=numpy.float32)
    writer.add_tensor("token_embd.weight", weights(len(tokens), WIDTH))
    writer.add_tensor("output_norm.weight", ones)
    writer.add_tensor("output.weight", weights(len(tokens), WIDTH))
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(block + norm + ".weight", ones)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(block + part + ".weight", weights(WIDTH, WIDTH))
        writer.add_tensor(block + "ffn_gate.weight", weights(FORWARD, WIDTH))
        writer.add_tensor(block + "ffn_up.weight", weights(FORWARD, WIDTH))
        writer.add_tensor(block + "ffn_down.weight", weights(WIDTH, FORWARD))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(path + ".part", path)


def main():
    path, port = sys.argv[1], int(sys.argv[2])
    if not os.path.exists(path):
        write_model(path)
    from xllamacpp import CommonParams, Server

    params = CommonParams()
    params.model.path = path
    params.n_ctx = CONTEXT
    params.port = port
    params.model_alias = {"tiny-random"}
    server = Server(params)
    print("serving", server.listening_address, flush=True)
    while True:
        time.sleep(3600)


main()
