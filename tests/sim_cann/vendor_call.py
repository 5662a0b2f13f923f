"""The real torch_npu on the simulated CANN, started by tests/test_sim.py.

torch_npu calls the same aclnn operators as our Ascend code, through code of its own. So its arguments, their order and
their types show how the vendor calls them: if the simulator accepts this call, our reading of the interface is right.
"""

import ml_dtypes
import numpy as np
import oracle
import torch
import torch_npu

BITS = {torch.float16: np.float16, torch.bfloat16: ml_dtypes.bfloat16}


def array(tensor):
    if tensor.dtype not in BITS:
        return tensor.numpy()
    return tensor.view(torch.int16).numpy().view(BITS[tensor.dtype])


def copies():
    x = torch.randn(64, 2, 16, dtype=torch.float16)
    there = x.npu()
    assert there.device.type == "npu" and torch.equal(there.cpu(), x)
    assert torch.equal((there + there).cpu(), x + x)


def prefill():
    torch.manual_seed(0)
    for dtype in BITS:
        x, w = torch.randn(130, 2, 32).to(dtype), torch.randn(32, 2).to(dtype)
        lengths = [50, 50, 130]
        y = torch_npu.npu_nsa_compress(x.npu(), w.npu(), 32, 16, actual_seq_len=lengths)
        expected = oracle.compress_float64(array(x), array(w), 32, 16, lengths)
        assert close(array(y.cpu()), expected), dtype


def decode():
    """Arguments as in the documentation of npu_nsa_compress_infer; the cache is updated in place."""
    torch.manual_seed(0)
    for dtype in BITS:
        x, w = torch.randn(12, 64, 2, 32).to(dtype), torch.randn(32, 2).to(dtype)
        cache = torch.randn(6, 2, 32).to(dtype)
        table = torch.randperm(12).to(torch.int32).reshape(3, 4)
        slots = torch.tensor([4, 0, 2], dtype=torch.int32)
        lengths = [64, 100, 160]  # the second one completes no window
        there = cache.npu()
        y = torch_npu.npu_nsa_compress_infer(
            x.npu(), w.npu(), slots.npu(), 32, 16, 64, block_table=table.npu(), actual_seq_len=lengths, cache=there
        )
        operands = (array(x), array(w), slots.numpy(), 32, 16, 64, table.numpy(), lengths, array(cache))
        assert close(array(y.cpu()), oracle.infer_float64(*operands)), dtype
        assert torch.equal(y.cpu(), there.cpu())
        kept = [0, 1, 3, 5]
        assert torch.equal(y.cpu()[kept], cache[kept])


def close(got, expected):
    unit = 2.0**-11 if got.dtype == np.float16 else 2.0**-8
    return (np.abs(got.astype(np.float64) - expected) <= (np.abs(expected) + 1) * unit + 2.0**-14).all()


if __name__ == "__main__":
    for check in (copies, prefill, decode):
        check()
