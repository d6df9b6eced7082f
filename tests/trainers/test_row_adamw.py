"""The row-wise optimizer against torch's dense one."""

import os

import pytest
import torch

from cllm4rec_hf.trainers.row_adamw import RowAdamW

ROWS, SIZE, STEPS = 12, 5, 40
SETTINGS = {"lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}


def start():
    return torch.randn(ROWS, SIZE, generator=torch.Generator().manual_seed(0))


def sparse(rows, values):
    return torch.sparse_coo_tensor(torch.tensor([rows]), values, (ROWS, SIZE))


def test_all_rows_touched_is_dense_adamw():
    dense, by_rows, by_dense = (torch.nn.Parameter(start()) for _ in range(3))
    optimizers = (
        torch.optim.AdamW([dense], **SETTINGS),
        RowAdamW([by_rows], **SETTINGS),
        RowAdamW([by_dense], **SETTINGS),
    )
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        gradient = torch.randn(ROWS, SIZE, generator=generator)
        dense.grad, by_dense.grad = gradient.clone(), gradient.clone()
        by_rows.grad = sparse(list(range(ROWS))[::-1], gradient.flip(0))
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(by_rows, dense, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(by_dense, dense, atol=2e-6, rtol=2e-6)
    assert not torch.allclose(dense, start(), atol=0.1)


def test_each_row_is_dense_adamw_on_its_own_steps():
    table = torch.nn.Parameter(start())
    optimizer = RowAdamW([table], **SETTINGS)
    alone = [torch.nn.Parameter(start()[row : row + 1]) for row in range(ROWS)]
    dense = [torch.optim.AdamW([row], **SETTINGS) for row in alone]
    generator = torch.Generator().manual_seed(2)
    touched = set()
    for _ in range(STEPS):
        rows = torch.randperm(ROWS - 2, generator=generator)[: int(torch.randint(1, 5, (), generator=generator))]
        # a row may be named more than once: its gradients add up
        twice = torch.cat([rows, rows[:1]])
        values = torch.randn(len(twice), SIZE, generator=generator)
        table.grad = sparse(twice.tolist(), values)
        optimizer.step()
        for row in rows.tolist():
            touched.add(row)
            alone[row].grad = values[twice == row].sum(0, keepdim=True)
            dense[row].step()
    assert len(touched) == ROWS - 2
    torch.testing.assert_close(
        table, torch.cat([row.detach() for row in alone]), atol=2e-6, rtol=2e-6, check_dtype=True
    )
    # rows nobody touched are bit-equal, and so is their state
    assert torch.equal(table[-2:], start()[-2:])
    assert not optimizer.state[table]["exp_avg"][-2:].any() and not optimizer.state[table]["step"][-2:].any()


def test_state_is_saved_and_loaded_exactly():
    table, again = torch.nn.Parameter(start()), torch.nn.Parameter(start())
    one, two = RowAdamW([table], **SETTINGS), RowAdamW([again], **SETTINGS)
    generator = torch.Generator().manual_seed(3)
    gradients = [torch.randn(3, SIZE, generator=generator) for _ in range(6)]
    for k, gradient in enumerate(gradients):
        table.grad = sparse([k, k + 1, k + 5], gradient)
        one.step()
        if k == 2:
            state, kept = one.state_dict(), table.detach().clone()
            state = {**state, "state": {i: {n: t.clone() for n, t in s.items()} for i, s in state["state"].items()}}
    with torch.no_grad():
        again.copy_(kept)
    two.load_state_dict(state)
    assert two.state[again]["step"].dtype == torch.int32
    for k in range(3, 6):
        again.grad = sparse([k, k + 1, k + 5], gradients[k])
        two.step()
    assert torch.equal(table, again)


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="lr must be 0 or more, got -1"):
        RowAdamW([torch.nn.Parameter(start())], lr=-1)
    with pytest.raises(ValueError, match=r"betas must lie between 0 and 1, got \(0.9, 1.0\)"):
        RowAdamW([torch.nn.Parameter(start())], betas=(0.9, 1.0))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's account of a process's memory")
def test_untouched_rows_of_state_take_no_memory():
    def resident():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith("RssAnon"))

    table = torch.nn.Parameter(torch.ones(300_000, 100))
    optimizer = RowAdamW([table])
    before = resident()
    table.grad = torch.sparse_coo_tensor(torch.tensor([[5, 299_999]]), torch.ones(2, 100), table.shape)
    optimizer.step()
    # two moments of 114 MB each
    assert resident() - before < 5


def test_a_loaded_state_lies_where_its_parameter_does():
    saved = RowAdamW([torch.nn.Parameter(torch.zeros(3, 2))])
    saved.param_groups[0]["params"][0].grad = torch.ones(3, 2)
    saved.step()
    elsewhere = RowAdamW([torch.nn.Parameter(torch.zeros(3, 2, device="meta"))])
    elsewhere.load_state_dict(saved.state_dict())
    (state,) = elsewhere.state.values()
    assert {name: x.device.type for name, x in state.items()} == dict.fromkeys(
        ("step", "exp_avg", "exp_avg_sq"), "meta"
    )
    assert state["step"].dtype == torch.int32
