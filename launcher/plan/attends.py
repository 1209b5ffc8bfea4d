"""Which models flash_attention_2 computes rightly, from their config. No torch."""

from __future__ import annotations

from launcher.plan.dims import Config, text_config

WIDEST = 256  # head that the kernels know
SINKS = {
    "gpt_oss",
    "granite_swa",
    "granitemoe_swa",
    "mimo_v2_flash",
}  # to which every token attends a little


def no_flash(config: Config, dtype: str, *, branches: bool) -> str | None:
    """Why a model can't attend with flash_attention_2; None if it can. ``branches``: steps whose rows share a prefix."""
    own = text_config(config)
    kind, heads = own.get("model_type"), own.get("num_attention_heads") or 1
    width = own.get("head_dim") or (own.get("hidden_size") or 0) // heads
    reasons = {
        "it computes in 16 bits, and the model in float32": dtype == "float32",
        f"its kernels know nothing of the attention sinks of {kind}": kind in SINKS,
        "its kernels know nothing of chunked attention": "chunked_attention"
        in (own.get("layer_types") or ()),
        "its kernels want values as wide as keys": own.get("kv_lora_rank")
        or (own.get("v_head_dim") or width) != width,
        f"its kernels know heads of {WIDEST} numbers at most": max(
            width, own.get("global_head_dim") or 0
        )
        > WIDEST,
        "rows that share a prefix take sdpa, which can't cap scores as this model does": branches
        and own.get("attn_logit_softcapping"),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)
