"""A language model of two megabytes, made for a test: it writes one text, letter by letter.

Its weights are a table of which letter follows which, so it has no knowledge; but it is a real GGUF
file, which llama.cpp loads, samples with a grammar, streams and stops.
"""

import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

EMBEDDING, HEADS, FEED_FORWARD, CONTEXT = 320, 5, 32, 4096
UNKNOWN, BEGIN, END = 0, 1, 2
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"


def byte_token(letter: str) -> int:
    return 3 + ord(letter)


def write_tiny_model(path: Path, text: str, *, endless: bool = False) -> Path:
    """Write a model that writes `text`, whose letters all differ, and repeats it if endless.

    Where a grammar forbids the text, a P (of PYTHON) begins, and a backquote ends.
    """
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256)), "\u2581"]
    follows = np.zeros((len(tokens), len(tokens)), dtype=np.float32)
    chain = [byte_token("\n"), *map(byte_token, text)]
    for before, after in pairwise(chain):
        follows[before, after] = 3
    follows[byte_token("\n"), byte_token("P")] = 2
    follows[chain[-1], chain[1] if endless else END] = 3
    follows[chain[-1], byte_token("`")] = 2
    embedding = np.eye(len(tokens), EMBEDDING, dtype=np.float32)
    output = np.zeros((len(tokens), EMBEDDING), dtype=np.float32)
    output[:, : len(tokens)] = follows.T
    path.write_bytes(_gguf(_metadata(tokens), _tensors(embedding, output)))
    return path


def _metadata(tokens: list[str]) -> dict[str, Any]:
    kinds = [2, 3, 3, *[6] * 256, 1]  # unknown, control, bytes, normal
    return {
        "general.architecture": "llama",
        "llama.context_length": CONTEXT,
        "llama.embedding_length": EMBEDDING,
        "llama.block_count": 1,
        "llama.feed_forward_length": FEED_FORWARD,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": BEGIN,
        "tokenizer.ggml.eos_token_id": END,
        "tokenizer.ggml.unknown_token_id": UNKNOWN,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": TEMPLATE,
    }


def _tensors(embedding: np.ndarray, output: np.ndarray) -> dict[str, np.ndarray]:
    square = np.zeros((EMBEDDING, EMBEDDING), dtype=np.float32)
    up = np.zeros((FEED_FORWARD, EMBEDDING), dtype=np.float32)
    ones = np.ones(EMBEDDING, dtype=np.float32)
    block = {f"attn_{name}": square for name in ("q", "k", "v", "output")}
    block |= {"ffn_gate": up, "ffn_up": up, "ffn_down": up.T.copy()}
    block |= {"attn_norm": ones, "ffn_norm": ones}
    tensors = {"token_embd.weight": embedding, "output_norm.weight": ones, "output.weight": output}
    return tensors | {f"blk.0.{name}.weight": values for name, values in block.items()}


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """Write a value with its type; an integer is unsigned, except in a list."""
    if isinstance(value, list):
        first = struct.pack("<I", 5) if type(value[0]) is int else _value(value[0])[:4]
        items = b"".join(_value(item)[4:] for item in value)
        return struct.pack("<I", 9) + first + struct.pack("<Q", len(value)) + items
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    kind, form = {bool: (7, "<I?"), int: (4, "<II"), float: (6, "<If")}[type(value)]
    return struct.pack(form, kind, value)


def _gguf(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> bytes:
    """Write a GGUF file, version 3, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(_text(name) + _value(value) for name, value in metadata.items())
    data = b""
    for name, values in tensors.items():
        sizes = struct.pack(f"<I{values.ndim}Q", values.ndim, *reversed(values.shape))
        head += _text(name) + sizes + struct.pack("<IQ", 0, len(data))
        data += values.tobytes() + b"\0" * (-values.nbytes % 32)
    return head + b"\0" * (-len(head) % 32) + data
