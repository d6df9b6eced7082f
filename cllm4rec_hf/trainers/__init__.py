"""One trainer and its arguments for each stage, the presets, and the recipe that runs the stages in turn."""
