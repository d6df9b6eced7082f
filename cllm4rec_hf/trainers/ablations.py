"""The ablations by name: settings that take the place of the preset's and of any others given."""

from typing import Any

# without C-steps the content tables stay where they were drawn, so nothing is to be pulled towards them
_NO_CONTENT_LM: dict[str, Any] = {"use_content": False, "lambda_c": 0.0}

ABLATIONS: dict[str, dict[str, Any]] = {
    # the paper's
    "llm-scratch": {"random_backbone": True, "train_backbone": True},
    "llm-cf": {**_NO_CONTENT_LM, "warm_start_texts": False},
    "llm-ftall": {"train_backbone": True},
    "llm-fixord": {"reorder": False},
    "llm-prerec": {"ranking_task": "collaborative", "recommendation_epochs": 0},
    # what the parts of the `default` preset are worth: texts in the warm start alone; its history term alone
    "no-content-lm": _NO_CONTENT_LM,
    "no-lm": {**_NO_CONTENT_LM, "lm_term": False, "warm_start_lm": False},
}
