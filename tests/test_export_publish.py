"""An export with external weights leaves the old model or the new one, each with its weights, whenever it is killed."""

import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch_cases import BLOCK, DIM, HEADS, STRIDE, randn, run_onnx, same

import nsa_onnx
from nsa_onnx import exporters
from nsa_onnx.exporters import publish


class Model(torch.nn.Module):
    """Its output's name and its weights say which version it is."""

    def __init__(self, version):
        super().__init__()
        self.weight = torch.nn.Parameter(randn(BLOCK, HEADS, seed=version))
        self.table = torch.nn.Parameter(torch.full((64, 64), float(version)))
        self.eval()

    def forward(self, x):
        y = nsa_onnx.nsa_compress(x, self.weight, BLOCK, STRIDE, actual_seq_len=[64])
        return y, x.view(-1)[:64].float() @ self.table


def arguments():
    return (randn(64, HEADS, DIM),)


def export(version, path, **options):
    names = [f"windows_{version}", "product"]
    return exporters.export(Model(version), arguments(), path, external_data=True, output_names=names, **options)


def version_of(path):
    """The version that a file's graph has, after checking that its weights are that version's."""
    proto = onnx.load(path)
    version = int(proto.graph.output[0].name.removeprefix("windows_"))
    table = next(tensor for tensor in proto.graph.initializer if tensor.dims == [64, 64])
    assert np.array_equal(onnx.numpy_helper.to_array(table), np.full((64, 64), float(version), np.float32))
    return version


def files(folder):
    return sorted(file.name for file in folder.iterdir())


def test_weights_are_called_after_their_content_and_old_ones_go(tmp_path):
    path = tmp_path / "model.onnx"
    export(1, path)
    first = files(tmp_path)
    assert len(first) == 2
    assert first[0] == "model.onnx"
    assert first[1].startswith("model.onnx.")
    assert first[1].endswith(".data")
    assert same(run_onnx(onnx.load(path), *arguments())[0], Model(1)(*arguments())[0])
    session = nsa_onnx.create_session(path, device="cpu")
    assert session.get_outputs()[0].name == "windows_1"
    export(1, path)
    assert files(tmp_path) == first
    export(2, path)
    second = files(tmp_path)
    assert len(second) == 2
    assert second[1] != first[1]
    assert version_of(path) == 2
    exporters.export(Model(3), arguments(), path)  # without weights beside it
    assert files(tmp_path) == ["model.onnx"]


def test_what_is_not_ours_stays(tmp_path):
    others = ["model.onnx.data", "other.onnx.0123456789abcdef.data", "model.onnx.0123.data", ".model.onnx.draft-file"]
    for name in others:
        (tmp_path / name).write_text("not ours")
    (tmp_path / "model-onnx.0123456789abcdef.data").touch()  # the dot is a dot
    export(1, tmp_path / "model.onnx")
    export(2, tmp_path / "model.onnx")
    assert set(others) < set(files(tmp_path))
    assert "model-onnx.0123456789abcdef.data" in files(tmp_path)


def test_the_legacy_route_and_portable_files_have_weights_too(tmp_path):
    export(1, tmp_path / "legacy.onnx", dynamo=False)
    export(2, tmp_path / "portable.onnx", portable=True, verify=True)
    assert len(files(tmp_path)) == 4
    assert version_of(tmp_path / "legacy.onnx") == 1
    assert version_of(tmp_path / "portable.onnx") == 2


def test_a_link_stays_one(tmp_path):
    (tmp_path / "store").mkdir()
    export(1, tmp_path / "store" / "model.onnx")
    (tmp_path / "model.onnx").symlink_to("store/model.onnx")
    export(2, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").is_symlink()
    assert version_of(tmp_path / "store" / "model.onnx") == 2
    assert len(files(tmp_path / "store")) == 2
    assert files(tmp_path) == ["model.onnx", "store"]


# A process that exports version 2 over version 1 and is killed before its n-th step on a file; a fork of it for each n.
# What torch does is done once: `program` is what it made of version 2.
KILLED = """
    import os, signal, sys
    import torch
    torch.set_num_threads(1)
    from test_export_publish import Model, arguments, export
    import torch.onnx

    folder = sys.argv[1]
    program = []
    true_export = torch.onnx.export

    def export_once(*args, **kwargs):
        if not program:
            program.append(true_export(*args, **kwargs))
        return program[0]

    torch.onnx.export = export_once
    export(2, os.path.join(folder, "warm-up.onnx"))
    for name in os.listdir(folder):
        if name.startswith("warm-up"):
            os.remove(os.path.join(folder, name))

    left = None

    def step(event, args):
        global left
        if left is None or not any(isinstance(a, (str, bytes, os.PathLike)) and folder in os.fsdecode(a) for a in args):
            return
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    sys.addaudithook(step)
    for line in sys.stdin:  # each line: the number of steps before death
        child = os.fork()
        if child == 0:
            left = int(line)
            export(2, os.path.join(folder, "model.onnx"))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
"""


def test_killed_at_every_step_it_is_the_old_model_or_the_new_one(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    path = folder / "model.onnx"
    export(1, path)
    old = {file.name: file.read_bytes() for file in folder.iterdir()}
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    seen = []
    with process:
        for steps in range(1000):
            for name, data in old.items():
                (folder / name).write_bytes(data)
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
            code = int(process.stdout.readline())
            seen.append(version_of(path))
            if code == 0:
                break
            assert code == -signal.SIGKILL
        process.stdin.close()
    assert seen == sorted(seen)  # there is one moment at which it becomes the new one
    assert seen.count(1) > 10  # drafts, weights
    assert seen.count(2) >= 2  # killed after the model is in place, and not killed
    assert len(files(folder)) == 2, "what the killed processes have left is gone"


def test_what_a_killed_process_leaves_goes_with_the_next_export(tmp_path):
    path = tmp_path / "model.onnx"
    draft = tmp_path / ".model.onnx.draft-killed"
    draft.mkdir()
    (draft / "model.onnx").write_bytes(b"half a mod")
    (tmp_path / "model.onnx.0123456789abcdef.data").write_bytes(b"weights of a model that never came")
    export(1, path)
    assert len(files(tmp_path)) == 2
    assert version_of(path) == 1


def test_a_full_disk_leaves_the_old_model(tmp_path):
    path = tmp_path / "model.onnx"
    export(1, path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))  # less than the weights
        with pytest.raises(OSError):  # noqa: PT011, NumPy's has another message than Python's
            export(2, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_exports_of_one_path_at_the_same_time_leave_one_whole_model(tmp_path):
    """Publishing only: torch's exporters are not made for threads."""
    path = tmp_path / "model.onnx"
    errors = []

    def publish_often(version):
        try:
            for _ in range(20):
                with publish.draft_of(path) as draft:
                    weights = draft.with_name("weights")
                    weights.write_bytes(np.full((64, 64), float(version), np.float32).tobytes())
                    onnx.save(graph(version), draft)
                    publish.name_weights(draft, weights)
                    publish.publish(draft, path)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=publish_often, args=(version,)) for version in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert version_of(path) in (1, 2, 3)
    assert len(files(tmp_path)) == 2


def graph(version):
    table = onnx.TensorProto(name="table", data_type=onnx.TensorProto.FLOAT, dims=[64, 64])
    table.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "weights"), ("offset", "0"), ("length", str(64 * 64 * 4))):
        table.external_data.add(key=key, value=value)
    output = onnx.helper.make_tensor_value_info(f"windows_{version}", onnx.TensorProto.FLOAT, [64, 64])
    node = onnx.helper.make_node("Identity", ["table"], [output.name])
    return onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [output], [table]))
