"""Files that are damaged, attacked, written by several at once, killed while written, or do not fit on the disk."""

import multiprocessing
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import torch
from mutations import outcomes
from safetensors.torch import save_file

from compressors.common.files import read_file, write_file
from compressors.common.files import whole_file as whole_file_of_compressors
from torch_fidelity_lsh import load_reference, reduce_features, save_reference
from torch_fidelity_lsh.cli import main
from torch_fidelity_lsh.fidelity import cache
from torch_fidelity_lsh.fidelity.inputs import read_features
from torch_fidelity_lsh.fidelity.upstream import read_model, read_weights
from torch_fidelity_lsh.metric.files import digest_of, read_tensors, whole_file, write_tensors, write_text

VALUES = torch.randn(60, 8, generator=torch.Generator().manual_seed(1))
KEPT = reduce_features(torch.randn(40, 200, generator=torch.Generator().manual_seed(2)))


def is_same(values):
    return values.shape == VALUES.shape and torch.equal(values, VALUES)


def read_by_call(path):
    return read_features(str(path), ["features"], "input1")["features"]


def write_reference(path):
    save_reference(KEPT, path)


def write_kept(path):
    write_tensors(path, cache.KIND, cache.VERSION, {"features": VALUES}, {"samples": "a folder"})


# A file's name, who writes it, who reads it, whether what was read is right, and the bytes without a checksum.
READERS = {
    "reference": ("r.safetensors", write_reference, load_reference, lambda r: torch.equal(r.values, KEPT.values), 0),
    "reference as input": (
        "r.safetensors",
        write_reference,
        read_by_call,
        lambda r: torch.equal(r.values, KEPT.values),
        0,
    ),
    "cache": (
        "c.safetensors",
        write_kept,
        lambda path: read_tensors(path, cache.KIND, cache.VERSION)[0]["features"],
        is_same,
        0,
    ),
    "npy": ("x.npy", lambda path: np.save(path, VALUES.numpy()), read_by_call, is_same, VALUES.nbytes),
    "npz": ("x.npz", lambda path: np.savez(path, features=VALUES.numpy()), read_by_call, is_same, 0),
    "packed npz": (
        "x.npz",
        lambda path: np.savez_compressed(path, features=VALUES.numpy()),
        read_by_call,
        is_same,
        0,
    ),
    "safetensors": (
        "x.safetensors",
        lambda path: save_file({"features": VALUES}, path),
        read_by_call,
        is_same,
        VALUES.nbytes,
    ),
    "weights": (
        "w.pth",
        lambda path: torch.save({"weight": VALUES}, path),
        lambda path: read_weights(str(path), "vgg16"),
        lambda _: True,
        0,
    ),
}


@pytest.mark.parametrize("number", [pytest.param(60, id="short"), pytest.param(600, id="long", marks=pytest.mark.slow)])
@pytest.mark.parametrize("reader", READERS)
def test_damaged_files_are_refused_by_name(reader, number, tmp_path):
    name, write, read, same, payload = READERS[reader]
    write(tmp_path / name)
    counts, examples = outcomes(tmp_path / name, read, same, number, payload)
    print(f"{reader}: {dict(counts)}")
    assert counts["crash"] == counts["unnamed"] == counts["silent"] == 0, examples


@pytest.mark.parametrize("field", ["dimension", "num_components", "seed", "feature_extractor"])
def test_a_reference_is_refused_if_a_fact_about_it_has_changed(field, tmp_path):
    path = tmp_path / "r.safetensors"
    save_reference(KEPT, path)
    tensors, facts = read_tensors(path, "torch-fidelity-lsh reference", 2)
    digest = digest_of(tensors, facts)
    save_file(tensors, path, {**facts, field: "7", "digest": digest})
    with pytest.raises(ValueError, match=r'r\.safetensors" is damaged: its digest does not fit'):
        load_reference(path)


@pytest.mark.parametrize("change", [lambda v: v.to(torch.float64), lambda v: v.half(), lambda v: v.view(-1, 64)])
def test_a_reference_is_refused_if_its_type_or_shape_has_changed(change, tmp_path):
    path = tmp_path / "r.safetensors"
    save_reference(KEPT, path)
    tensors, facts = read_tensors(path, "torch-fidelity-lsh reference", 2)
    save_file(
        {name: change(values) for name, values in tensors.items()}, path, {**facts, "digest": digest_of(tensors, facts)}
    )
    with pytest.raises(ValueError, match=r"r\.safetensors"):
        load_reference(path)


def test_a_reference_that_holds_nan_is_refused_even_with_a_right_digest(tmp_path):
    path = tmp_path / "r.safetensors"
    save_reference(KEPT, path)
    tensors, facts = read_tensors(path, "torch-fidelity-lsh reference", 2)
    tensors["reduced_features"][3, 4] = torch.nan
    write_tensors(path, "torch-fidelity-lsh reference", 2, tensors, facts)
    with pytest.raises(ValueError, match=r'r\.safetensors".*hold NaN'):
        load_reference(path)


def test_a_header_that_shifts_the_numbers_is_noticed(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, VALUES.numpy())
    content = bytearray(path.read_bytes())
    for wrong in (content[8] - 4, content[8] + 4):
        path.write_bytes(bytes(content[:8]) + bytes([wrong]) + bytes(content[9:]))
        with pytest.raises(ValueError, match=r"x\.npy.*damaged"):
            read_by_call(path)


def test_a_small_archive_of_a_huge_array_is_refused_before_it_takes_memory(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("features.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (150_000, 512)})
        for _ in range(150):
            member.write(bytes(1000 * 512 * 4))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        ValueError, match=r"bomb\.npz.*of \d+ bytes unpacks to 307200128; features_max_bytes allows more"
    ):
        read_by_call(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


def test_an_array_over_the_limit_that_the_call_gives(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, VALUES.numpy())
    with pytest.raises(ValueError, match="unpacks to"):
        read_features(str(path), ["features"], "input1", max_bytes=1000)
    assert torch.equal(read_features(str(path), ["features"], "input1", max_bytes=10_000)["features"], VALUES)


def test_an_archive_with_one_name_twice_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, features=VALUES.numpy())
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("features.npy", b"other")
    with pytest.raises(ValueError, match="several arrays have one name"):
        read_by_call(path)


def write_forever(path, worker):
    """Write files whose lines are all alike, one after another, until killed."""
    for number in range(10**9):
        write_text(path, f"{worker} {number}\n" * 20_000)


def write_tensors_forever(path, worker):
    for number in range(10**9):
        write_tensors(path, "test", 1, {"a": torch.full((200, 200), float(number))}, {"number": str(number)})


def write_compressed_forever(path, worker):
    for number in range(10**9):
        write_file(path, "test", {"a": torch.full((200, 200), float(number))}, {"number": number})


def check_compressed(path):
    tensors, content = read_file(path, "test")
    assert (tensors["a"] == content["number"]).all()


def check_text(path):
    lines = path.read_text().splitlines()
    assert len(lines) == 20_000
    assert len(set(lines)) == 1


def check_tensors(path):
    tensors, facts = read_tensors(path, "test", 1)
    assert (tensors["a"] == float(facts["number"])).all()


WRITERS = {
    "text": (write_forever, check_text),
    "tensors": (write_tensors_forever, check_tensors),
    "compressors": (write_compressed_forever, check_compressed),
}


def started(work, *arguments):
    torch.set_num_threads(1)
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


def sweep(path, write):
    """Write the file once more, as the next run does."""
    content = path.read_bytes()
    if write is write_compressed_forever:
        with whole_file_of_compressors(path) as temporary:
            temporary.write_bytes(content)
    else:
        with whole_file(path) as file:
            file.write(content)


@pytest.mark.parametrize("kills", [pytest.param(6, id="short"), pytest.param(60, id="long", marks=pytest.mark.slow)])
@pytest.mark.parametrize("writer", WRITERS)
def test_killed_writers_leave_a_whole_file_and_nothing_else(writer, kills, tmp_path):
    write, check = WRITERS[writer]
    path, drawn = tmp_path / "file.safetensors", random.Random(0)
    found = 0
    for _ in range(kills):
        process = started(write, path, 0)
        while not path.exists():
            time.sleep(0.01)
        time.sleep(drawn.random() * 0.1)
        process.kill()
        process.join()
        check(path)
        found += len(list(tmp_path.iterdir())) - 1
        sweep(path, write)
        assert list(tmp_path.iterdir()) == [path]
    print(f"{writer}: {kills} kills, {kills} whole files, {found} leftovers, all swept")


def test_what_a_host_of_a_longer_name_writes_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "node1")
    path = tmp_path / "file.safetensors"
    other, own = (tmp_path / f".{path.name}.{host}.999999999.x.part" for host in ("bignode1", "node1"))
    other.touch(), own.touch()
    write_text(path, "whole")
    assert sorted(tmp_path.iterdir()) == sorted([path, other])


@pytest.mark.parametrize("seconds", [pytest.param(1, id="short"), pytest.param(20, id="long", marks=pytest.mark.slow)])
@pytest.mark.parametrize("writer", WRITERS)
def test_readers_beside_several_writers_see_whole_files(writer, seconds, tmp_path):
    write, check = WRITERS[writer]
    path, reads = tmp_path / "file.safetensors", 0
    processes = [started(write, path, worker) for worker in range(3)]
    try:
        while not path.exists():
            time.sleep(0.01)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            check(path)
            reads += 1
    finally:
        for process in processes:
            process.kill()
            process.join()
    print(f"{writer}: {reads} reads beside 3 writers, 0 mixed")


def save_under_limit(path, limit, queue):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        save_reference(reduce_features(torch.ones(50, 200)), path)
        queue.put("written")
    except Exception as error:
        queue.put(f"{type(error).__name__}: {error}")


def test_a_full_disk_leaves_the_old_file_and_names_the_new(tmp_path):
    path = tmp_path / "r.safetensors"
    save_reference(KEPT, path)
    before, size = path.read_bytes(), path.stat().st_size
    queue = multiprocessing.get_context("fork").Queue()
    for limit in (0, 1, 8, 100, 1000, 4096, size // 2):
        process = started(save_under_limit, path, limit, queue)
        text = queue.get(timeout=60)
        process.join()
        assert text.startswith("OSError"), text
        assert "r.safetensors" in text
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]


def test_files_get_the_permissions_that_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        save_reference(KEPT, tmp_path / "r.safetensors")
        write_text(tmp_path / "t", "text")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_a_writer_that_still_runs_is_not_swept_away(tmp_path):
    with whole_file(tmp_path / "[a]*") as outer:
        outer.write(b"outer")
        with whole_file(tmp_path / "[a]*") as inner:
            inner.write(b"inner")
    assert (tmp_path / "[a]*").read_bytes() == b"outer"


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("nodir/x.safetensors", 'error: --output: there is no folder ".*nodir" to write "x.safetensors" in'),
        ("x.pt", r"error: --output: the file must end in \.safetensors; got"),
        ("folder.safetensors", r'error: --output: ".*folder\.safetensors" is a folder; name a file in it'),
    ],
)
def test_where_the_index_goes_is_checked_before_the_work(
    output, message, counting_extractor, image_folders, tmp_path, capsys
):
    (tmp_path / "folder.safetensors").mkdir()
    options = ["--feature-extractor", "counting", "--cpu", "--silent", "--no-cache"]
    assert main(["index", "--input", image_folders[0], "--output", str(tmp_path / output), *options]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
    assert counting_extractor.created == 0


def test_a_reference_that_cannot_be_written_is_an_os_error_with_its_name(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("torch_fidelity_lsh.metric.files.os.fsync", refuse)
    with pytest.raises(OSError, match=r"Permission denied: '.*r\.safetensors'"):
        save_reference(KEPT, tmp_path / "r.safetensors")


def test_an_interrupt_is_one_line(image_folders, tmp_path):
    code = (
        "import signal, sys\n"
        "from torch_fidelity_lsh import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # Shells have jobs in the background ignore it.
        "cli.calculate_metrics = lambda **_: signal.raise_signal(signal.SIGINT)\n"
        "sys.exit(cli.main(['--input1', 'a.npy', '--input2', 'a.npy', '--lsh']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "fidelity-lsh: interrupted\n")


@pytest.mark.parametrize("kind", ["onnx", "pth"])
def test_a_generator_file_that_is_cut_off_anywhere_is_refused(kind, tmp_path):
    path = tmp_path / f"g.{kind}"
    torch.jit.script(torch.nn.Linear(4, 4)).save(path)
    whole = path.read_bytes()
    assert kind == "onnx" or read_model(str(path), 4, "normal", 0)
    from torch_fidelity_lsh.fidelity.generators import read_model as read

    call = {"input1_model_z_size": 4, "input1_model_z_type": "normal", "input1_model_num_classes": 0}
    for size in range(0, len(whole) - 30, len(whole) // 12):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"input1: .*g\.{kind}"):
            read("input1", str(path), call)
