"""Train CLLM4Rec on prepared data: what `accelerate launch` starts.

    accelerate launch examples/train.py --config examples/configs/movielens-100k.yaml
    accelerate launch examples/train.py --data prepared --output out --backbone HuggingFaceTB/SmolLM2-135M

`--config` is a YAML file of the settings that `--help` lists; flags win over it. Run again after an interruption, the
same command goes on from the last checkpoint of the stage that was interrupted. `cllm4rec train` does the same in one
process.
"""

import logging
import sys

from cllm4rec_hf.cli import main

if __name__ == "__main__":
    logging.captureWarnings(True)
    sys.exit(main(["train", *sys.argv[1:]]))
