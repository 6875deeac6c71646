"""The session and the decode-ahead stream: batches by the items alone, failures by row, bounded, clean on every end."""

from __future__ import annotations

import io
import threading
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

import stage1.runtime.stream as stream_module
from stage1.errors import DataError, IntegrityError, MissingError, Stage1Error
from stage1.runtime.crops import ViewPolicy, cut
from stage1.runtime.images import ImageError, decode
from stage1.runtime.preprocessing import Preprocessing, load_tensor
from stage1.runtime.session import BatchLimit, Engine, _providers, cores, out_of_memory
from stage1.runtime.stream import StreamTimes, stream

from ..limits import ends_within

SPEC = Preprocessing(size=8)


def model_bytes(shape=("N", 3, 8, 8), inputs=1) -> bytes:
    """mean over the pixels (`features`, [N, 3]) and its sum over channels (`total`, [N, 1])."""
    pixels = [helper.make_tensor_value_info(f"image{i or ''}", TensorProto.FLOAT, shape) for i in range(inputs)]
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["features"], keepdims=0),
        helper.make_node("ReduceSum", ["features", "one"], ["total"], keepdims=1),
    ]
    outputs = [
        helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 3]),
        helper.make_tensor_value_info("total", TensorProto.FLOAT, ["N", 1]),
    ]
    graph = helper.make_graph(nodes, "means", pixels, outputs, initializer=[axes, one])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 12), (value % 256, (value * 7) % 256, (value * 31) % 256)).save(stream, "PNG")
    return stream.getvalue()


def expected(data: bytes) -> np.ndarray:
    return load_tensor(data, SPEC).mean(axis=(1, 2))


def collect(batches):
    rows, features, failed, sizes = [], [], [], []
    for index, outputs, errors in batches:
        assert all(len(output) == len(index) for output in outputs)
        rows += index.tolist()
        features.append(outputs[0])
        failed += errors
        sizes.append(len(index))
    return rows, np.concatenate(features), failed, sizes


# ---- engine ------------------------------------------------------------------------------------------------------


def test_engine_returns_all_outputs_by_name(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(model_bytes())
    engine = Engine(path)
    batch = np.random.default_rng(0).random((5, 3, 8, 8), dtype=np.float32)
    features, total = engine.run(batch)
    assert engine.output_names == ("features", "total")
    assert engine.input_size == 8
    np.testing.assert_allclose(features, batch.mean(axis=(2, 3)), rtol=1e-5)
    np.testing.assert_allclose(total[:, 0], features.sum(axis=1), rtol=1e-5)
    assert engine.digest == Engine(path.read_bytes()).digest


def test_no_images_give_empty_outputs():
    features, total = Engine(model_bytes()).run(np.zeros((0, 3, 8, 8), np.float32))
    assert features.shape == (0, 3)
    assert total.shape == (0, 1)


CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"}


@pytest.mark.parametrize(
    "device, cuda_there, options, logged",
    [
        (None, False, None, ""),
        (None, True, CUDA_OPTIONS, ""),
        ("cpu", True, None, ""),
        ("cuda", True, CUDA_OPTIONS, ""),
        ("cuda:1", True, CUDA_OPTIONS | {"device_id": "1"}, ""),
        ("cuda:1", False, None, "device cuda:1: this onnxruntime has no CUDA provider"),
        ("mps", True, None, "device mps: unknown here"),
    ],
)
def test_the_device_chooses_the_provider_and_what_stands_in_is_logged(device, cuda_there, options, logged, caplog):
    available = ["CUDAExecutionProvider"] * cuda_there + ["CPUExecutionProvider"]
    *accelerator, last = _providers(device, available)
    assert (accelerator, last) == ([] if options is None else [("CUDAExecutionProvider", options)], available[-1])
    assert (logged in caplog.text) if logged else not caplog.records


@pytest.mark.parametrize("shape", [(2, 3, 8, 9), (2, 1, 8, 8), (3, 8, 8)])
def test_wrong_shape_is_named(shape):
    with pytest.raises(DataError, match="shape"):
        Engine(model_bytes()).run(np.zeros(shape, np.float32))


def test_missing_and_damaged_models_are_one_line(tmp_path):
    with pytest.raises(MissingError, match="no such model file"):
        Engine(tmp_path / "model.onnx")
    whole = model_bytes()
    for damaged in (b"", b"not a model", whole[: len(whole) // 2], whole[::-1]):
        with pytest.raises(IntegrityError) as caught:
            Engine(damaged)
        assert "\n" not in str(caught.value)


def test_model_without_image_input_is_refused():
    with pytest.raises(IntegrityError, match="image input"):
        Engine(model_bytes(inputs=2))
    with pytest.raises(DataError, match="threads"):
        Engine(model_bytes(), threads=-1)


# ---- memory ------------------------------------------------------------------------------------------------------


def test_batch_is_halved_where_memory_runs_out_and_stays_small(caplog):
    seen = []

    def call(batch):
        seen.append(len(batch))
        if len(batch) > 3:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 123")
        return (batch[:, 0, 0, :1] * 2, batch[:, 0, 0, 1])

    limit = BatchLimit()
    batch = np.arange(13 * 3 * 4, dtype=np.float32).reshape(13, 3, 2, 2)
    first, second = limit.run(call, batch)
    np.testing.assert_array_equal(first, batch[:, 0, 0, :1] * 2)
    np.testing.assert_array_equal(second, batch[:, 0, 0, 1])
    assert seen[:3] == [13, 6, 3]
    assert limit.size == 3
    assert "13; going on with 6" in caplog.text
    seen.clear()
    limit.run(call, batch)
    assert max(seen) == 3


@pytest.mark.parametrize(
    "count, size, pieces",
    [(9, None, [9]), (9, 4, [4, 3, 2]), (8, 4, [4, 4]), (5, 4, [3, 2]), (1, 4, [1]), (3, 2, [2, 1]), (32, 4, [4] * 8)],
)
def test_pieces_of_a_batch_leave_no_image_alone(count, size, pieces):
    seen = []

    def call(batch):
        seen.append(len(batch))
        return (batch.sum(axis=(1, 2, 3)),)

    batch = np.arange(count * 3 * 4, dtype=np.float32).reshape(count, 3, 2, 2)
    (found,) = BatchLimit(size).run(call, batch)
    np.testing.assert_array_equal(found, batch.sum(axis=(1, 2, 3)))
    assert seen == pieces


def test_not_even_one_image_fits_is_an_error():
    def call(batch):
        raise MemoryError

    with pytest.raises(MemoryError, match="one image"):
        BatchLimit().run(call, np.zeros((5, 3, 2, 2), np.float32))


def test_other_errors_are_not_taken_for_memory():
    assert out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert out_of_memory(RuntimeError("std::bad_alloc"))
    assert not out_of_memory(RuntimeError("Got invalid dimensions for input: image"))

    def call(batch):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        BatchLimit().run(call, np.zeros((5, 3, 2, 2), np.float32))


# ---- stream ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 23])
def test_stream_gives_every_image_once_in_order(count):
    items = [png(value) for value in range(count)]
    batches = list(stream(Engine(model_bytes()), items, SPEC, batch_size=4))
    assert [len(rows) for rows, _, _ in batches] == [4] * (count // 4) + ([count % 4] if count % 4 else [])
    assert [row for rows, _, _ in batches for row in rows] == list(range(count))
    for rows, outputs, failed in batches:
        assert failed == []
        np.testing.assert_allclose(outputs[0], [expected(items[row]) for row in rows], rtol=1e-5, atol=1e-6)


def test_paths_bytes_and_functions_are_items(tmp_path):
    (tmp_path / "a.png").write_bytes(png(3))
    items = [tmp_path / "a.png", str(tmp_path / "a.png"), png(3), lambda: png(3)]
    _, features, failed, _ = collect(stream(Engine(model_bytes()), items, SPEC))
    assert failed == []
    np.testing.assert_array_equal(features, features[[0, 0, 0, 0]])


def test_failures_are_reported_by_row_and_never_replaced(tmp_path):
    items = [png(value) for value in range(12)]
    items[0] = b""
    items[3] = b"no image"
    items[4] = tmp_path / "gone.png"
    items[11] = png(11)[:40]
    rows, features, failed, sizes = collect(stream(Engine(model_bytes()), items, SPEC, batch_size=3))
    assert rows == [1, 2, 5, 6, 7, 8, 9, 10]
    assert sizes == [3, 3, 2]
    assert [row for row, _ in failed] == [0, 3, 4, 11]
    assert isinstance(failed[2][1], FileNotFoundError)
    assert all(isinstance(error, ImageError) for row, error in failed if row != 4)
    np.testing.assert_allclose(features, [expected(items[row]) for row in rows], rtol=1e-5, atol=1e-6)


def test_only_failures_still_come_back():
    batches = list(stream(Engine(model_bytes()), [b"", b"x", b""], SPEC, batch_size=2))
    assert [(len(rows), [row for row, _ in failed]) for rows, _, failed in batches] == [(0, [0, 1, 2])]
    assert batches[0][1][0].shape == (0, 3)


def test_batches_do_not_depend_on_timing_or_threads():
    rng = np.random.default_rng(5)
    delays = rng.random(30) * 0.01
    items = [png(value) if value % 7 else b"broken" for value in range(30)]

    def slow(value):
        def load():
            time.sleep(delays[value])
            return items[value]

        return load

    reference = [rows.tolist() for rows, _, _ in stream(Engine(model_bytes()), items, SPEC, batch_size=4, workers=1)]
    for threads, workers in ((1, 5), (2, 3), (4, 2)):
        engine = Engine(model_bytes(), threads=threads)
        lazy = [slow(value) for value in range(30)]
        assert [r.tolist() for r, _, _ in stream(engine, lazy, SPEC, batch_size=4, workers=workers)] == reference


def test_no_batch_crosses_a_cut():
    items = [png(value) for value in range(20)]
    items[9] = b""
    rows = [r.tolist() for r, _, _ in stream(Engine(model_bytes()), items, SPEC, batch_size=4, cuts=(0, 6, 10))]
    assert rows == [[0, 1, 2, 3], [4, 5], [6, 7, 8], [10, 11, 12, 13], [14, 15, 16, 17], [18, 19]]


class Slow:
    """A runner that takes its time, and notes what it was given."""

    parallel = 1

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.active = self.most = 0

    def run(self, batch):
        self.active += 1
        self.most = max(self.most, self.active)
        time.sleep(self.seconds)
        self.active -= 1
        return (batch.mean(axis=(1, 2, 3)),)

    def empty(self):
        return (np.zeros(0, np.float32),)


def test_look_ahead_is_bounded_and_one_batch_runs_at_a_time():
    read = []

    def item(value):
        def load():
            read.append(value)
            return png(value)

        return load

    runner = Slow(0.02)
    batches = stream(runner, [item(value) for value in range(200)], SPEC, batch_size=4, workers=3)
    next(batches)
    time.sleep(0.2)
    assert max(read) < 4 * (1 + 1 + 1) + 2 * 4 + 2 * 3 + 4
    batches.close()
    assert runner.most == 1


def stage1_threads() -> list[str]:
    """The stream's own: a detector of another test may still have its lanes."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("stage1-decode", "stage1-run"))]


def test_threads_end_however_the_stream_ends(monkeypatch):
    engine = Engine(model_bytes())
    items = [png(value) for value in range(40)]
    list(stream(engine, items, SPEC, batch_size=4))
    assert stage1_threads() == []
    batches = stream(engine, items, SPEC, batch_size=4)
    next(batches)
    assert stage1_threads()
    batches.close()
    assert stage1_threads() == []

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stream_module, "_finished", interrupted)  # Ctrl-C reaches the consumer's thread here
    with pytest.raises(KeyboardInterrupt):
        list(stream(engine, items, SPEC, batch_size=4))
    assert stage1_threads() == []


def test_a_bug_in_an_item_or_in_the_engine_is_not_swallowed():
    def bug():
        raise ZeroDivisionError("bug")

    with pytest.raises(ZeroDivisionError):
        list(stream(Engine(model_bytes()), [png(1), bug], SPEC))

    class Broken(Slow):
        def run(self, batch):
            raise RuntimeError("driver lost")

    with pytest.raises(RuntimeError, match="driver lost"):
        list(stream(Broken(0), [png(1)], SPEC))
    assert stage1_threads() == []
    with pytest.raises(DataError, match="batch_size"):
        list(stream(Engine(model_bytes()), [png(1)], SPEC, batch_size=0))


def test_times_tell_waiting_from_running():
    def late():
        time.sleep(0.03)
        return png(1)

    starved, fed = StreamTimes(), StreamTimes()
    list(stream(Slow(0.001), [late] * 8, SPEC, batch_size=2, workers=1, times=starved))
    list(stream(Slow(0.05), [png(1)] * 8, SPEC, batch_size=2, workers=1, times=fed))
    assert starved.images == fed.images == 8
    assert starved.waiting_share > 0.6 > 0.4 > fed.waiting_share
    assert starved.decode >= 0.24
    assert fed.run >= 0.2
    assert fed.images_per_second == pytest.approx(8 / fed.seconds)


def test_the_same_image_gives_the_same_bits_in_any_batch():
    engine = Engine(model_bytes(), threads=cores())
    batch = np.random.default_rng(1).random((9, 3, 8, 8), dtype=np.float32)
    whole = engine.run(batch)[0]
    for size in (1, 2, 7):
        parts = [engine.run(batch[start : start + size])[0] for start in range(0, 9, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_helper_model_is_valid():
    onnx.checker.check_model(onnx.load_from_string(model_bytes()), full_check=True)


# ---- deadline ----------------------------------------------------------------------------------------------------


def endless_model() -> bytes:
    """logits [N, 2] by a loop whose condition is always true."""
    tensor, make = helper.make_tensor_value_info, helper.make_tensor
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["still"]), helper.make_node("Add", ["x", "one"], ["y"])],
        "body",
        [
            tensor("i", TensorProto.INT64, []),
            tensor("go", TensorProto.BOOL, []),
            tensor("x", TensorProto.FLOAT, ["N", 2]),
        ],
        [tensor("still", TensorProto.BOOL, []), tensor("y", TensorProto.FLOAT, ["N", 2])],
        [make("one", TensorProto.FLOAT, [], [1.0])],
    )
    axes, two = make("axes", TensorProto.INT64, [2], [2, 3]), make("two", TensorProto.INT64, [1], [2])
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["means"], keepdims=0),
        helper.make_node("Slice", ["means", "zero", "two", "one"], ["start"]),
        helper.make_node("Loop", ["", "true", "start"], ["logits"], body=body),
    ]
    constants = [
        axes,
        two,
        make("zero", TensorProto.INT64, [1], [0]),
        make("one", TensorProto.INT64, [1], [1]),
        make("true", TensorProto.BOOL, [], [True]),
    ]
    graph = helper.make_graph(
        nodes,
        "endless",
        [tensor("image", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [tensor("logits", TensorProto.FLOAT, ["N", 2])],
        initializer=constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def test_a_model_that_never_ends_is_given_up_at_the_deadline():
    engine = Engine(endless_model(), threads=1, deadline_s=0.2)
    with (
        ends_within(60),
        pytest.raises(Stage1Error, match=r"no answer for 2 image\(s\) after 0\.4 s .*--deadline") as caught,
    ):
        list(stream(engine, [png(1), png(2), png(3)], SPEC, batch_size=2))
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


def test_a_deadline_changes_no_answer():
    batch = np.random.default_rng(1).random((5, 3, 8, 8), dtype=np.float32)
    for limited, free in zip(
        Engine(model_bytes(), deadline_s=60).run(batch), Engine(model_bytes()).run(batch), strict=True
    ):
        np.testing.assert_array_equal(limited, free)
    for bad in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(DataError, match="deadline"):
            Engine(model_bytes(), deadline_s=bad)


# ---- views -------------------------------------------------------------------------------------------------------


def noisy(seed: int) -> bytes:
    side = np.random.default_rng(seed).integers(5, 40, 2)
    pixels = np.random.default_rng(seed).integers(0, 256, (*side, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("batch_size", [1, 5, 12, 1000])
def test_all_views_of_an_image_come_from_one_decode_in_one_forward(batch_size, monkeypatch):
    engine, views = Engine(model_bytes()), ViewPolicy(grid=(2, 2))
    items = [noisy(seed) for seed in range(9)]
    items[4] = b"broken"
    sizes, run = [], engine.run
    monkeypatch.setattr(engine, "run", lambda batch: sizes.append(len(batch)) or run(batch))
    rows, features, failed, counts = [], [], [], []
    for index, outputs, errors in stream(engine, items, SPEC, views=views, batch_size=batch_size):
        assert [output.shape[:2] for output in outputs[:2]] == [(len(index), 5)] * 2
        assert outputs[2].shape == (len(index), 2)
        for place, row in enumerate(index.tolist()):
            rgb = decode(items[row])
            assert outputs[2][place].tolist() == list(rgb.shape[:2])
            assert np.allclose(outputs[0][place], cut(rgb, views, SPEC).mean(axis=(2, 3)), atol=1e-5)
        rows += index.tolist()
        features.append(outputs[0])
        failed += errors
        counts.append(len(index))
    assert rows == [0, 1, 2, 3, 5, 6, 7, 8]
    assert [row for row, _ in failed] == [4]
    assert max(sizes) == 5 * max(counts) <= max(batch_size, 5), "rows of a forward are views"
    assert sum(sizes) == 40


def test_no_image_at_all_has_empty_views():
    engine = Engine(model_bytes())
    [(rows, outputs, failed)] = stream(engine, [b"broken"], SPEC, views=ViewPolicy(grid=(2, 2)))
    assert len(rows) == 0
    assert [output.shape for output in outputs] == [(0, 5, 3), (0, 5, 1), (0, 2)]
    assert len(failed) == 1
