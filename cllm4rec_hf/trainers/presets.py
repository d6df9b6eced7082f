"""Named recipes. `paper` is exactly the paper's; `default` is what measures best."""

from typing import Any

PAPER: dict[str, Any] = {
    "lambda_c": 1.0,
    "lambda_l": 0.0,
    "lr_scheduler_type": "constant",
    "warm_start": "none",
    "history_term": False,
    "center_hidden": False,
    "item_bias": False,
    "initial_lm_share": None,
    "max_length": 1024,
    "max_text_length": 1024,
    "mask_share": [0.2, 0.2],
    "anonymous_share": 0.0,
    # constants of the released code: Adam, 20 documents on each of 8 processes
    "content_epochs": 10,
    "content_stage_learning_rate": 1e-3,
    "pretraining_epochs": 100,
    "pretraining_learning_rate": 1e-3,
    "recommendation_epochs": 150,
    "recommendation_learning_rate": 1e-4,
    "content_learning_rate": None,
    "user_learning_rate": None,
    "head_learning_rate": None,
    "batch_size": 20,
    "gradient_accumulation_steps": 8,
    # Adam moves every row at each step, and the softmax is over all items, however many
    "row_sparse": False,
    "sampled_softmax_above": 10**9,
}

DEFAULT: dict[str, Any] = {
    "lambda_c": 1.0,
    "lambda_l": 0.0,
    "lr_scheduler_type": "linear",
    "warm_start": "auto",
    "history_term": True,
    "center_hidden": True,
    "item_bias": True,
    "initial_lm_share": 0.02,
    "max_length": 512,
    "max_text_length": 160,
    "mask_share": [0.1, 0.3],
    "anonymous_share": 0.1,
    "content_epochs": 0.2,
    "content_stage_learning_rate": 1e-3,
    "pretraining_epochs": 1,
    "pretraining_learning_rate": 3e-4,
    "recommendation_epochs": 2,
    "recommendation_learning_rate": 3e-4,
    "content_learning_rate": 1e-3,
    "user_learning_rate": None,
    "head_learning_rate": 1e-3,
    "batch_size": 32,
    "gradient_accumulation_steps": 1,
    "row_sparse": True,
    "sampled_softmax_above": 50_000,
}

PRESETS = {"paper": PAPER, "default": DEFAULT}
