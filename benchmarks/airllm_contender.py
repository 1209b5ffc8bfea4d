"""AirLLM as a contender of benchmarks/streamed.py, in an environment of its own:
``python airllm_contender.py MODEL ROWS PROMPT NEW``. It generates once for every line on stdin."""

import sys

import torch
from airllm import AutoModel


def main(path: str, rows: int, prompt: int, new: int) -> None:
    model = AutoModel.from_pretrained(path, device="cpu", dtype=torch.bfloat16)
    tokens = torch.randint(1, 32000, (rows, prompt))
    print("ready", flush=True)
    for _ in sys.stdin:
        model.generate(tokens, max_new_tokens=new, min_new_tokens=new, do_sample=False)
        print("ready", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
