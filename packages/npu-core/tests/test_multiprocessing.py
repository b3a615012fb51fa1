"""Tensors, storages and events of npu in several processes at once."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch.multiprocessing import reductions

sys.path.append(str(Path(__file__).parent / "processes"))  # spawned children get it too

import npu_peers
from npu_peers import PATIENCE, Peer, PeerError

MIB = 1 << 20


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    process = Peer()
    yield process
    process.close()


@pytest.fixture
def peers() -> Iterator[list[Peer]]:
    """Two processes of the test's own, which it may also end itself."""
    processes = [Peer(), Peer()]
    yield processes
    for process in processes:
        process.close()


@pytest.fixture(autouse=True)
def nothing_has_a_name() -> Iterator[None]:
    yield
    assert [name for name in os.listdir("/dev/shm") if "npu" in name or f"torch_{os.getpid()}_" in name] == []


def allocated() -> int:
    gc.collect()
    torch.npu.synchronize()
    torch.npu.ipc_collect()
    return torch.npu.memory_allocated()


# ---- what arrives


BASE = torch.arange(24.0)
VIEWS = {
    "whole": lambda b: b,
    "shape": lambda b: b.view(2, 3, 4),
    "transposed": lambda b: b.view(4, 6).t(),
    "offset": lambda b: b[5:9],
    "strided": lambda b: b[1::3],
    "element": lambda b: b[7],
    "expanded": lambda b: b[:1].expand(5),
    "empty view": lambda b: b[4:4],
}


@pytest.mark.parametrize("device", ["npu:0", "npu:1"])
@pytest.mark.parametrize("name", VIEWS)
def test_views_keep_their_geometry(peer, name, device):
    mine = VIEWS[name](BASE.to(device))
    seen = peer(npu_peers.describe, mine)
    assert seen == npu_peers.describe(mine) and seen["device"] == device and seen["storage"] == 96
    assert seen["values"] == VIEWS[name](BASE).tolist()


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64],
)
def test_dtypes(peer, dtype):
    tensor = torch.tensor([0, 1, 3]).to(dtype).npu()
    assert peer(npu_peers.describe, tensor) == npu_peers.describe(tensor)


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2)])
def test_empty_tensors(peer, shape):
    tensor = torch.empty(shape, device="npu:1", dtype=torch.int32)
    assert peer(npu_peers.describe, tensor) == npu_peers.describe(tensor)


def test_parameters_and_gradients(peer):
    parameter = torch.nn.Parameter(torch.ones(2, device="npu"))
    frozen = torch.nn.Parameter(torch.ones(2, dtype=torch.int32, device="npu"), requires_grad=False)
    leaf = torch.ones(2, device="npu", requires_grad=True)
    for value in (parameter, frozen, leaf):
        assert peer(npu_peers.describe, value) == npu_peers.describe(value)
    assert peer(npu_peers.gradient, parameter) == [3, 3] and parameter.grad is None


def test_storages(peer):
    tensor = torch.arange(3, device="npu", dtype=torch.int16)
    expected = {"class": "UntypedStorage", "device": "npu:0", "values": [0, 0, 1, 0, 2, 0]}
    assert peer(npu_peers.describe, tensor.untyped_storage()) == expected
    typed = peer(npu_peers.describe, tensor.storage())
    assert (typed["class"], typed["device"], typed["values"]) == ("TypedStorage", "npu:0", [0, 1, 2])


def test_modules(peer):
    model = torch.nn.Linear(2, 2).npu()
    peer(npu_peers.keep, "weights", model.state_dict()["weight"])
    with torch.no_grad():
        model.weight.fill_(7)
    torch.npu.synchronize()
    assert peer(npu_peers.values, "weights") == [[7, 7], [7, 7]]
    peer(npu_peers.drop, "weights")


def test_results_of_a_peer(peer):
    tensor = peer(npu_peers.make, (2, 3), 5.0, "npu:1")
    assert tensor.device == torch.device("npu:1") and tensor.tolist() == [[5] * 3] * 2
    peer(npu_peers.drop, "made")


# ---- it is the same memory


def test_both_sides_see_what_the_other_writes(peer):
    tensor = torch.zeros(1000, device="npu")
    peer(npu_peers.keep, "shared", tensor[10:20])
    peer(npu_peers.fill, "shared", 3.0)
    assert tensor.sum().item() == 30 and tensor[10].item() == 3
    tensor.fill_(4)
    torch.npu.synchronize()
    assert peer(npu_peers.values, "shared") == [4.0] * 10
    peer(npu_peers.drop, "shared")


def test_a_storage_that_is_sent_twice_is_one_storage(peer):
    tensor = torch.zeros(6, device="npu")
    peer(npu_peers.keep, "first", tensor[:4])
    peer(npu_peers.keep, "second", tensor[2:])
    assert peer(npu_peers.same_storage, "first", "second")
    peer(npu_peers.fill, "first", 1.0)
    assert peer(npu_peers.values, "second") == [1, 1, 0, 0]
    peer(npu_peers.drop, "first")
    assert peer(npu_peers.values, "second") == [1, 1, 0, 0], "the second reference keeps the memory"
    peer(npu_peers.drop, "second")


def test_received_memory_is_used_like_any_other(peer):
    received = peer(npu_peers.make, (64, 64), 2.0)
    assert (received @ received)[3, 5].item() == 256
    assert received.clone().sum().item() == received.to("npu:1").sum().item() == received.cpu().sum().item() == 8192
    received[0].copy_(torch.full((64,), 9.0))
    torch.npu.synchronize()
    assert peer(npu_peers.values, "made")[0] == [9.0] * 64
    with pytest.raises(RuntimeError, match="not resizable"):
        received.untyped_storage().resize_(MIB)
    received.record_stream(torch.npu.Stream())
    peer(npu_peers.drop, "made")


def test_a_sent_storage_may_be_resized_here(peer):
    tensor = torch.ones(4, device="npu")
    peer(npu_peers.keep, "old", tensor)
    tensor.untyped_storage().resize_(4096)
    tensor.fill_(5)
    torch.npu.synchronize()
    assert peer(npu_peers.values, "old") == [1, 1, 1, 1]
    peer(npu_peers.drop, "old")


# ---- order


@pytest.mark.parametrize("side", [False, True])
def test_a_receiver_waits_for_the_senders_work(peer, side):
    stream = torch.npu.Stream() if side else torch.npu.current_stream()
    npu_peers.delay_next("aten::mul", 300)
    with torch.npu.stream(stream):
        tensor = torch.ones(8, device="npu") * 6
        answer = peer(npu_peers.describe, tensor)
    assert answer["values"] == [6.0] * 8


def test_a_queue_waits_for_the_stream_that_allocated(peer):
    """The queue pickles in a thread where the default stream is current, not the side stream."""
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    npu_peers.delay_next("aten::mul", 300)
    with torch.npu.stream(torch.npu.Stream()):
        tensor = torch.ones(8, device="npu") * 6
    torch.npu.set_stream(torch.npu.default_stream())
    queue.put(tensor)
    assert queue.get().tolist() == [6.0] * 8
    assert peer(npu_peers.describe, tensor)["values"] == [6.0] * 8


def test_the_second_message_of_a_storage_waits_too(peer):
    tensor = torch.zeros(8, device="npu")
    peer(npu_peers.keep, "known", tensor)
    npu_peers.delay_next("aten::add", 300)
    tensor.add_(2)
    assert peer(npu_peers.describe, tensor)["values"] == [2.0] * 8
    peer(npu_peers.drop, "known")


def test_work_that_failed_is_the_senders_error(peer):
    from npu_core import _C

    torch.npu.synchronize()
    tensor = torch.zeros(8, device="npu")
    _C._inject_fault(0, _C._FAULT_FAIL_TASK, match="aten::add", count=1)
    tensor.add_(1)
    peer(npu_peers.describe, tensor)
    with pytest.raises(RuntimeError, match="aten::add"):
        torch.npu.synchronize()


# ---- who keeps the memory


def test_memory_lives_until_the_receiver_lets_go(peer):
    before = allocated()
    tensor = torch.full((MIB,), 3, dtype=torch.uint8, device="npu")
    full = allocated()
    peer(npu_peers.keep, "alone", tensor[:4])
    del tensor
    assert allocated() == full
    others = [torch.full((MIB,), 9, dtype=torch.uint8, device="npu") for _ in range(8)]
    torch.npu.synchronize()
    assert peer(npu_peers.values, "alone") == [3, 3, 3, 3]
    del others
    peer(npu_peers.drop, "alone")
    assert allocated() == before


def test_memory_lives_while_the_sender_holds_it(peer):
    before = allocated()
    tensor = torch.ones(MIB, dtype=torch.uint8, device="npu")
    full = allocated()
    peer(npu_peers.describe, tensor[:2])
    assert allocated() == full and tensor.sum().item() == MIB
    del tensor
    assert torch.npu.memory_allocated() == before, "nobody else used it any more: freed at once"


def test_a_peer_that_was_killed_holds_nothing(peers):
    victim, other = peers
    before = allocated()
    tensor = torch.full((MIB,), 3, dtype=torch.uint8, device="npu")
    full = allocated()
    victim(npu_peers.keep, "held", tensor)
    other(npu_peers.keep, "held", tensor[:2])
    del tensor
    victim.kill()
    assert allocated() == full, "the other one still uses it"
    assert other(npu_peers.values, "held") == [3, 3]
    other(npu_peers.drop, "held")
    assert allocated() == before


def test_running_out_of_memory_takes_back_what_is_unused(run_python):
    code = """
        import os, signal, sys
        sys.path.append(PEERS)
        import torch, npu_peers

        if __name__ == "__main__":
            peer = npu_peers.Peer()
            tensor = torch.ones(40 << 20, dtype=torch.uint8, device="npu")
            peer(npu_peers.keep, "held", tensor)
            del tensor
            try:
                torch.ones(40 << 20, dtype=torch.uint8, device="npu")
                print("too early")
            except torch.OutOfMemoryError:
                print("in use")
            peer(npu_peers.drop, "held")
            print(torch.ones(40 << 20, dtype=torch.uint8, device="npu").sum().item() == 40 << 20)
            peer.close()
        """.replace("PEERS", repr(str(Path(__file__).parent / "processes")))
    done = run_python(code, NPU_HOST_MEMORY=str(64 << 20))
    assert done.stdout.split("\n") == ["in use", "True", ""]


def test_what_was_received_outlives_its_sender(peers):
    for peer, end in zip(peers, (Peer.close, Peer.kill), strict=True):
        tensor = peer(npu_peers.make, (MIB,), 4.0)
        peer(npu_peers.drop)  # its work is done
        end(peer)
        assert tensor.sum().item() == 4 * MIB
        tensor.zero_()
        assert tensor.sum().item() == 0


def test_what_was_not_received_in_time_is_gone(peers):
    peer = peers[0]
    peer(npu_peers.make, (3,), 4.0)
    data = peer(npu_peers.pickled, "made")
    peer.kill()
    with pytest.raises(RuntimeError, match=r"cannot receive a tensor from process \d+, which has ended"):
        ForkingPickler.loads(data)


def test_a_message_has_one_receiver(peer):
    data = bytes(ForkingPickler.dumps(torch.ones(3, device="npu")))
    peer(npu_peers.unpickle, "only", data)
    with pytest.raises(PeerError, match="RuntimeError: .*received before.*send the tensor once to each"):
        peer(npu_peers.unpickle, "again", data)
    peer(npu_peers.drop, "only")
    with pytest.raises(RuntimeError, match="received before"):
        ForkingPickler.loads(data)


def test_mappings_of_a_receiver_are_undone(peer):
    before = peer(npu_peers.mapped_device_memory)
    tensors = [torch.ones(3, device=f"npu:{i}") for i in (0, 1)]
    peer(npu_peers.keep, "first", tensors[0])
    peer(npu_peers.keep, "second", tensors[1])
    assert peer(npu_peers.mapped_device_memory) > before
    peer(npu_peers.drop, "first", "second")
    assert peer(npu_peers.mapped_device_memory) == before


def test_more_tensors_than_fit_a_page_of_references(peer):
    count = 2500
    tensors = list(torch.ones(count, 2, device="npu").unbind())
    assert peer(npu_peers.cycle, 2 * count, [t[i] for t in tensors for i in (0, 1)]) == 2 * count
    before = allocated()
    for _ in range(30):
        peer(npu_peers.describe, torch.ones(MIB, dtype=torch.uint8, device="npu")[:1])
    assert allocated() == before


# ---- sent on


def test_a_received_tensor_is_sent_on(peers):
    first, second = peers
    before = allocated()
    tensor = torch.full((MIB,), 1, dtype=torch.uint8, device="npu")
    full = allocated()
    first(npu_peers.keep, "tensor", tensor)
    second(npu_peers.unpickle, "tensor", first(npu_peers.pickled, "tensor"))
    first(npu_peers.drop, "tensor")
    second(npu_peers.fill, "tensor", 7)
    assert tensor[5].item() == 7
    del tensor
    assert allocated() == full, "the third process has a reference of its own"
    assert second(npu_peers.values, "tensor")[:2] == [7, 7]
    second(npu_peers.drop, "tensor")
    assert allocated() == before


@pytest.mark.parametrize("kept", [True, False])
def test_a_tensor_comes_back(peer, kept):
    before = allocated()
    tensor = torch.full((MIB,), 1, dtype=torch.uint8, device="npu")
    full = allocated()
    address = tensor.data_ptr()
    peer(npu_peers.keep, "tensor", tensor[2:4])
    if not kept:
        del tensor
    back = ForkingPickler.loads(peer(npu_peers.pickled, "tensor"))
    assert back.data_ptr() == address + 2 and back.storage_offset() == 2 and back.tolist() == [1, 1]
    if kept:
        assert back.untyped_storage()._cdata == tensor.untyped_storage()._cdata
        del tensor
    peer(npu_peers.drop, "tensor")
    assert allocated() == full
    del back
    assert allocated() == before


def test_a_message_to_oneself(peer):
    tensor = torch.arange(4.0, device="npu")
    again = ForkingPickler.loads(bytes(ForkingPickler.dumps(tensor[1:])))
    again.zero_()
    assert tensor.tolist() == [0, 0, 0, 0] and again.data_ptr() == tensor.data_ptr() + 4


# ---- ways to send


def test_arguments_of_a_process():
    tensor = torch.ones(3, device="npu")
    process = mp.get_context("spawn").Process(target=npu_peers.add_to_argument, args=(tensor, 2.0))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 0 and tensor.tolist() == [3, 3, 3]


def test_spawn():
    tensor = torch.zeros(2, device="npu")
    mp.spawn(npu_peers.rank_of_spawn, args=(tensor,), nprocs=2)
    assert tensor.tolist() == [1, 2]


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_queues(kind):
    context = mp.get_context("spawn")
    tasks, results = getattr(context, kind)(), getattr(context, kind)()
    process = context.Process(target=npu_peers.queue_loop, args=(tasks, results))
    process.start()
    sent = [torch.full((4,), float(i), device=f"npu:{i % 2}") for i in range(6)]
    for tensor in sent:
        tasks.put(tensor)
    answers = [results.get(timeout=PATIENCE) for _ in sent]
    tasks.put(None)
    tasks.put(None)  # everything is received: the process may end
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert [a.tolist() for a in answers] == [[2.0 * i] * 4 for i in range(6)]
    assert [a.device for a in answers] == [t.device for t in sent]


def test_pools():
    with mp.get_context("spawn").Pool(2) as pool:
        tensors = [torch.full((3,), float(i), device="npu") for i in range(5)]
        results = pool.map_async(npu_peers.double, tensors, chunksize=2).get(PATIENCE)
        assert [r.tolist() for r in results] == [[2.0 * i] * 3 for i in range(5)]


def test_reduce_tensor_is_a_public_function(peer):
    """Programs that share weights between processes call it themselves and correct the device at position 6."""
    tensor = torch.arange(3.0, device="npu")
    function, arguments = reductions.reduce_tensor(tensor)
    assert arguments[6] == 0
    changed = list(arguments)
    changed[6] = 1
    assert peer(npu_peers.rebuild, function, tuple(changed)) == [0, 1, 2]


# ---- what is refused


def test_only_leaves_carry_requires_grad():
    product = torch.ones(2, device="npu", requires_grad=True) * 2
    with pytest.raises(RuntimeError, match=r"Only leaf tensors .* Send tensor.detach\(\) instead"):
        ForkingPickler.dumps(product)
    ForkingPickler.loads(ForkingPickler.dumps(product.detach()))


def test_damaged_messages_are_refused():
    from npu_core import _C

    with pytest.raises(RuntimeError, match="no message of a shared tensor"):
        _C._import_storage(b"123")
    with pytest.raises(RuntimeError, match="only storages on npu"):
        _C._export_storage(torch.ones(3).untyped_storage())


def test_a_device_that_the_receiver_does_not_see(monkeypatch):
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "1")
    process = Peer()
    monkeypatch.undo()
    try:
        seen = process(npu_peers.describe, torch.ones(2, device="npu:1"))
        assert seen["device"] == "npu:0" and seen["values"] == [1, 1], "devices are renumbered, memory is not"
        data = bytes(ForkingPickler.dumps(torch.ones(2, device="npu:0")))
        with pytest.raises(PeerError, match="a tensor on device 0 .* does not see that device"):
            process(npu_peers.unpickle, "hidden", data)
    finally:
        process.close()


def test_expandable_segments_are_not_shared(run_python):
    code = """
        import torch
        from multiprocessing.reduction import ForkingPickler
        try:
            ForkingPickler.dumps(torch.ones(2, device="npu"))
        except RuntimeError as error:
            print("expandable_segments" in str(error), "ERR00007" in str(error))
        """
    done = run_python(code, PYTORCH_NPU_ALLOC_CONF="expandable_segments:True")
    assert done.stdout.split() == ["True", "True"]


def test_cpu_tensors_are_sent_as_before(peer):
    tensor = torch.ones(3)
    peer(npu_peers.keep, "cpu", tensor)
    tensor.fill_(2)
    assert peer(npu_peers.values, "cpu") == [2, 2, 2]
    assert peer(npu_peers.describe, torch.ones(2).to_sparse().to_dense())["device"] == "cpu"
    peer(npu_peers.drop, "cpu")
    with pytest.raises(RuntimeError, match="meta"):
        ForkingPickler.dumps(torch.ones(2, device="meta").untyped_storage())


def test_a_forked_child_is_told_to_spawn(run_python):
    code = """
        import torch
        import torch.multiprocessing as mp

        def child(tensor, connection):
            try:
                connection.send(tensor)
            except RuntimeError as error:
                connection.send(str(error).splitlines()[0])

        mine, theirs = mp.Pipe()
        process = mp.get_context("fork").Process(target=child, args=(torch.ones(2, device="npu"), theirs))
        process.start()
        print(mine.recv() if mine.poll(60) else "nothing")
        process.join(60)
        print(process.exitcode)
        """
    done = run_python(code)
    assert "you must use the 'spawn' start method" in done.stdout and done.stdout.endswith("\n0\n")
