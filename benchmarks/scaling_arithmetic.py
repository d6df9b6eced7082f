"""The tables of docs/scaling.md, computed from their formulas: `python benchmarks/scaling_arithmetic.py`.

Nothing here is measured. Sizes are decimal (1 GB = 10⁹ bytes).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Backbone:
    """A decoder-only language model: its layers, and its words with their head."""

    name: str
    hidden: int
    inner: int
    num_layers: int
    words: int
    key_value_share: float = 1.0
    tied: bool = False

    @property
    def layer_parameters(self) -> float:
        """Weights of all layers: four attention matrices and three of the gated MLP."""
        attention = self.hidden**2 * (2 + 2 * self.key_value_share)
        return self.num_layers * (attention + 3 * self.hidden * self.inner)

    @property
    def word_parameters(self) -> float:
        """Word embeddings and the head."""
        return self.words * self.hidden * (1 if self.tied else 2)


@dataclass(frozen=True)
class Cluster:
    """Assumed machines; rates are sustained ones."""

    machines: int = 8
    gpus: int = 8
    gpu_memory: float = 80e9
    flops: float = 400e12  # bfloat16 matmul
    flops_fp32: float = 150e12  # float32 matmul in TF32
    nvlink: float = 300e9  # bytes/s of a GPU
    network: float = 50e9  # bytes/s of a machine, 400 Gb/s
    disk: float = 5e9  # bytes/s of the shared file system

    @property
    def processes(self) -> int:
        """One a GPU."""
        return self.machines * self.gpus


SEVEN_B = Backbone("7B", 4096, 11008, 32, 32_000)
SMALL = Backbone("135M", 576, 1536, 30, 49_152, key_value_share=1 / 3, tied=True)
ONE_B = Backbone("1B", 2048, 8192, 16, 128_256, key_value_share=1 / 4, tied=True)
CLUSTER = Cluster()
USERS, ITEMS = 10**8, 10**7
BATCH, HISTORY, PROMPT, TEXT, SAMPLE = 32, 50, 60, 160, 8_192
LOGITS = 50_000_000  # item logits that are held at once
RESERVE = 10e9  # of a GPU, for what the formulas leave out


def gigabytes(size: float) -> str:
    """Bytes as text with three digits."""
    for unit, scale in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.3g} B"


def seconds(time: float) -> str:
    """A time as text."""
    for unit, scale in (("days", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if time >= scale * (1 if unit == "s" else 2):
            return f"{time / scale:.3g} {unit}"
    return f"{time * 1e3:.3g} ms"


def row_bytes(hidden: int, bytes_each: int = 12) -> int:
    """Bytes that a user or an item takes: a row in two tables, each with two moments (4 + 4 + 4)."""
    return 2 * hidden * bytes_each


def _millions(count: float) -> str:
    return f"{count / 1e6:.2f} M"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def activations(backbone: Backbone, tokens: float, checkpointing: bool) -> float:
    """Bytes kept for the backward pass: of each layer its input, or all that its backward pass reads."""
    # inputs of the norms, q, k, v and the attention's output, both products of the gated MLP; no input of a frozen
    # matrix is needed
    inside = 2 * (2 * backbone.hidden + (2 + 2 * backbone.key_value_share) * backbone.hidden + 2 * backbone.inner)
    if not checkpointing:
        return tokens * backbone.num_layers * inside
    return tokens * (backbone.num_layers * 2 * backbone.hidden + inside)


def memory_table() -> str:
    """What everything takes at 10⁸ users, 10⁷ items and a 7B backbone."""
    d, b, c = SEVEN_B.hidden, SEVEN_B, CLUSTER
    tokens = BATCH * TEXT
    rows = [
        ["backbone, bfloat16, whole", "2 (P + W)", gigabytes(2 * (b.layer_parameters + b.word_parameters))],
        [
            "backbone, layers sharded over 8 GPUs",
            "2 (P/8 + W)",
            gigabytes(2 * (b.layer_parameters / c.gpus + b.word_parameters)),
        ],
        ["a user table, float32", "4 I d", gigabytes(4 * USERS * d)],
        ["an item table, float32", "4 J d", gigabytes(4 * ITEMS * d)],
        ["the four tables, float32", "8 (I + J) d", gigabytes(8 * (USERS + ITEMS) * d)],
        ["the four tables in bfloat16 (not offered)", "4 (I + J) d", gigabytes(4 * (USERS + ITEMS) * d)],
        ["their two moments, float32", "16 (I + J) d", gigabytes(16 * (USERS + ITEMS) * d)],
        ["their counts of steps, int32", "8 (I + J)", gigabytes(8 * (USERS + ITEMS))],
        ["activations of a C-step, all kept", "T · L · 2 (6 d + 2 f)", gigabytes(activations(b, tokens, False))],
        ["the same, checkpointed", "T (L · 2 d + 2 (6 d + 2 f))", gigabytes(activations(b, tokens, True))],
        ["item logits held in an L-step, exact", "4 max(J, 5·10⁷)", gigabytes(4 * max(ITEMS, LOGITS))],
        ["item logits of an L-step, sampled", "4 B n S", gigabytes(4 * BATCH * HISTORY * SAMPLE)],
    ]
    return table(["part", "bytes", "size"], rows)


def limit_table() -> str:
    """How many users and items fit on one GPU with everything whole in each process."""
    rows = []
    for backbone in (SMALL, ONE_B, SEVEN_B):
        whole = CLUSTER.gpu_memory - RESERVE - 2 * (backbone.layer_parameters + backbone.word_parameters)
        sharded = whole + 2 * backbone.layer_parameters * (1 - 1 / CLUSTER.gpus)
        each = row_bytes(backbone.hidden)
        dense = row_bytes(backbone.hidden, 16)
        # accelerate's wrapping of tables: gathered weights and gradients whole, 1/8 of both and of two moments
        fsdp = row_bytes(backbone.hidden, 8) + row_bytes(backbone.hidden, 16) / CLUSTER.gpus
        rows.append(
            [
                f"{backbone.name}, d = {backbone.hidden}",
                gigabytes(each),
                _millions(whole / dense),
                _millions(whole / each),
                _millions(sharded / each),
                _millions(sharded / fsdp),
            ]
        )
    header = ["backbone", "a user or item", "dense AdamW, DDP", "`row_sparse`, DDP", "`row_sparse`, FSDP2"]
    return table([*header, "tables in FSDP units (not offered)"], rows)


def step_table() -> str:
    """Bytes on the wire and time of an L-step of 32 documents a process on 64 GPUs."""
    b, c, d = SEVEN_B, CLUSTER, SEVEN_B.hidden
    tokens = BATCH * PROMPT
    own = BATCH * (1 + HISTORY) * d * 4
    with_sample = own + SAMPLE * d * 4
    outside = (c.processes - c.gpus) / c.processes
    gathered = 2 * 2 * b.layer_parameters * (c.gpus - 1) / c.gpus
    across = 2 * 2 * b.layer_parameters * (c.machines - 1) / c.machines
    dense = 2 * 4 * (USERS + ITEMS) * d
    passes = [
        ["forward and backward", "4 P T FLOP", f"{4 * b.layer_parameters * tokens:.2g} FLOP", 4],
        ["the same, checkpointed", "6 P T FLOP", f"{6 * b.layer_parameters * tokens:.2g} FLOP", 6],
    ]
    rows = [[n, f, s, seconds(k * b.layer_parameters * tokens / c.flops)] for n, f, s, k in passes]
    rows += [
        [
            "item softmax, exact",
            "8 B n J d FLOP",
            f"{8 * BATCH * HISTORY * ITEMS * d:.2g} FLOP",
            seconds(8 * BATCH * HISTORY * ITEMS * d / c.flops_fp32),
        ],
        [
            "item softmax, sampled",
            "6 B n S d FLOP",
            f"{6 * BATCH * HISTORY * SAMPLE * d:.2g} FLOP",
            seconds(6 * BATCH * HISTORY * SAMPLE * d / c.flops_fp32),
        ],
        ["layers gathered in a machine", "4 P · 7/8", gigabytes(gathered), seconds(gathered / c.nvlink)],
        ["layers gathered over all machines (not done)", "4 P · 7/8", gigabytes(across), seconds(across / c.network)],
        ["gradients, dense (DDP)", "2 · 4 (I + J) d", gigabytes(dense), seconds(dense / c.network)],
        [
            "gradients, rows",
            "4 (B (1 + n) + S) d · 64",
            gigabytes(with_sample * c.processes),
            seconds(with_sample * c.processes * outside / c.network),
        ],
        [
            "gradients, rows, without the sample's",
            "4 B (1 + n) d · 64",
            gigabytes(own * c.processes),
            seconds(own * c.processes * outside / c.network),
        ],
    ]
    return table(["part of a step", "amount", "here", "time"], rows)


def total_flops() -> dict[str, float]:
    """FLOP of the default recipe's stages, an L- or fine-tuning document a user and as many content documents."""
    documents = {"content": (0, 0.2), "pretraining": (1, 1), "recommendation": (2, 2)}
    per_token = 4 * SEVEN_B.layer_parameters
    return {
        name: per_token * USERS * (interactions * PROMPT + texts * TEXT)
        for name, (interactions, texts) in documents.items()
    }


def run_table() -> str:
    """GPU hours of whole stages and of scoring everyone."""
    b, c = SEVEN_B, CLUSTER
    rows = []
    for name, flops in total_flops().items():
        hours = flops / c.flops / 3600
        rows.append([f"stage: {name}", f"{flops:.2g}", f"{hours:,.0f}", seconds(hours * 3600 / c.processes)])
    forward = 2 * b.layer_parameters * USERS * PROMPT
    scores = 2.0 * USERS * ITEMS * b.hidden
    for name, flops, rate in (
        ("prediction: prompts of all users, 2 P T I", forward, c.flops),
        ("prediction: all scores, 2 I J d", scores, c.flops_fp32),
    ):
        rows.append([name, f"{flops:.2g}", f"{flops / rate / 3600:,.0f}", seconds(flops / rate / c.processes)])
    return table(["work", "FLOP", "GPU hours", f"time on {c.processes} GPUs"], rows)


def scores_table() -> str:
    """Catalog size from which scores cost more than prompts, P T / d items at equal rates."""
    rows = []
    for b in (SMALL, ONE_B, SEVEN_B):
        equal = b.layer_parameters * PROMPT / b.hidden * CLUSTER.flops_fp32 / CLUSTER.flops
        rows.append([b.name, _millions(equal), gigabytes(4 * ITEMS * b.hidden)])
    return table(["backbone", "items at which scores cost as much as prompts", "item table of 10⁷ items"], rows)


def disk_table() -> str:
    """Sizes and times of checkpoints."""
    rows = []
    for users, items, b in ((10**4, 10**4, SMALL), (10**6, 10**6, SMALL), (USERS, ITEMS, SEVEN_B)):
        tables = 8 * (users + items) * b.hidden
        rows.append(
            [
                f"{users:.0e} users, {items:.0e} items, d = {b.hidden}".replace("e+0", "e"),
                gigabytes(tables),
                gigabytes(3 * tables),
                seconds(tables / CLUSTER.disk),
                seconds(3 * tables / CLUSTER.disk),
            ]
        )
    return table(["size", "model.safetensors", "with optimizer.pt", "to read or write", "with optimizer.pt"], rows)


TABLES = {
    "memory": memory_table,
    "limit": limit_table,
    "step": step_table,
    "run": run_table,
    "scores": scores_table,
    "disk": disk_table,
}

if __name__ == "__main__":
    for heading, make in TABLES.items():
        print(f"{heading}\n\n{make()}\n")
