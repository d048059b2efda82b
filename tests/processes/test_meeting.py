"""How nodes wait for each other: what is said when, and when it ends; on a clock of the test's own, in one process."""

from __future__ import annotations

import socket
import threading

import pytest

from megatron_patch.errors import UserError
from megatron_patch.processes import shared_folder
from megatron_patch.processes.meeting import Meeting, why_unreached, why_unresolved


class Shared:
    """What the first node holds, as torch's store behaves."""

    def __init__(self):
        self.values, self.news = {}, threading.Condition()

    def set(self, key, value):
        with self.news:
            self.values[key] = str(value).encode()
            self.news.notify_all()

    def get(self, key):
        with self.news:
            assert self.news.wait_for(lambda: key in self.values, timeout=20)
            return self.values[key]

    def check(self, keys):
        return all(key in self.values for key in keys)

    def add(self, key, amount):
        self.set(key, int(self.values.get(key, 0)) + amount)
        return int(self.values[key])


class Clock:
    def __init__(self):
        self.now = 0.0

    def sleep(self, seconds):
        self.now += seconds


def meeting(node, nodes, told=None, minutes=1.5):
    clock = Clock()
    tell = (lambda line: None) if told is None else lambda line: told.append((clock.now, line))
    return Meeting(node, nodes, "dlc-master-0", 23456, minutes, tell, clock=lambda: clock.now, sleep=clock.sleep)


def test_a_missing_node_is_named_every_thirty_seconds_and_not_for_ever():
    told, store = [], Shared()
    store.add("node/2", 1)
    with pytest.raises(UserError, match=r"nodes 1, 3 did not come to dlc-master-0:23456 within 1.5 min .*WORLD_SIZE"):
        meeting(0, 4, told).gather(store)
    assert told == [
        (float(at), f"node 0 of 4 waits on dlc-master-0:23456; nodes 1, 3 have not come for {at} s.") for at in (30, 60, 90)
    ]


def test_a_first_node_that_cannot_be_reached_is_waited_for_with_the_reason():
    told = []
    with pytest.raises(
        UserError, match=r"node 1 of 2 could not reach node 0 at dlc-master-0:23456 within 1.5 min .*: no answer\. "
    ):
        meeting(1, 2, told).reach(lambda: "no answer")
    assert [at for at, _ in told] == [30, 60, 90]
    assert told[1][1] == "node 1 of 2 waits for node 0 at dlc-master-0:23456; for 60 s: no answer."
    meeting(1, 2).reach(iter(["no answer", "no answer", ""]).__next__)


def test_numbers_that_contradict_each_other_are_a_sentence():
    store = Shared()
    store.set("nodes", 2)
    store.add("node/1", 1)
    with pytest.raises(UserError, match="two nodes say that they are number 1"):
        meeting(1, 2).gather(store)
    with pytest.raises(UserError, match=r"node 2 was told of 3 nodes \(WORLD_SIZE\), and node 0 of 2"):
        meeting(2, 3).gather(store)


def test_why_an_address_does_not_answer():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert why_unreached("127.0.0.1", port) == "Connection refused"
        listener.listen()
        assert why_unreached("127.0.0.1", port) == ""
    assert why_unresolved("no-such-host.invalid").startswith("the name no-such-host.invalid has no address (")


def compared(folders, inputs=("a", "a"), look=shared_folder.check):
    """What each node raises, whose OUTPUT_BASEPATH is the folder at its place, and whose data has the fingerprint."""
    store, found = Shared(), {}

    def node(number):
        try:
            look(meeting(number, len(folders)), store, folders[number], seconds=1.0)
            one = inputs[number]
            read = one if isinstance(one, dict) else {"DATASET_PATH": one}
            shared_folder.check_inputs(meeting(number, len(folders)), store, read)
            found[number] = ""
        except UserError as error:
            found[number] = str(error)

    threads = [threading.Thread(target=node, args=(number,)) for number in range(len(folders))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_one_folder_on_all_nodes_is_seen_and_left_as_it_was(tmp_path):
    assert compared([tmp_path / "one"] * 3, "aaa") == {0: "", 1: "", 2: ""}
    assert list((tmp_path / "one").iterdir()) == []


def test_folders_of_their_own_and_other_data_are_named_on_every_node(tmp_path):
    for found in (compared([tmp_path / "one", tmp_path / "two"]), compared([tmp_path, tmp_path], inputs=("a", "b"))):
        assert found[0].split(":")[0] == found[1].split(":")[0].replace("two", "one") and found[0]
    alone = compared([tmp_path / "one", tmp_path / "two"])
    assert f"node 1 ({socket.gethostname()}) does not see what node 0 wrote there" in alone[0]
    said = "DATASET_PATH is not the same on all nodes: node 1 has other bytes there than node 0."
    assert compared([tmp_path, tmp_path], inputs=("a", "b"))[1] == said


def test_each_argument_whose_files_differ_is_named_and_what_only_some_nodes_read_is_not(tmp_path):
    names = ("TRAIN_DATASET_PATH", "VALID_DATASET_PATH", "PRETRAIN_CHECKPOINT_PATH")
    inputs = [dict(zip(names, one, strict=False)) for one in ("abc", "abd", "aee", "ab")]
    said = "VALID_DATASET_PATH is not the same on all nodes: node 2 has other bytes there than node 0."
    assert set(compared([tmp_path] * 4, inputs).values()) == {said}
    weights = "PRETRAIN_CHECKPOINT_PATH is not the same on all nodes: node 1, node 2 has other bytes there than node 0."
    assert set(compared([tmp_path] * 3, inputs[:3]).values()) == {f"{said} {weights}"}


def test_with_local_output_each_node_has_a_folder_of_its_own(tmp_path):
    """On a shared disk two nodes would write one folder, each its own part over the other's."""
    apart = {"look": shared_folder.check_apart}
    assert compared([tmp_path / "one", tmp_path / "two"], **apart) == {0: "", 1: ""}
    assert [*(tmp_path / "one").iterdir()] == [*(tmp_path / "two").iterdir()] == []
    found = compared([tmp_path / "one", tmp_path / "two", tmp_path / "one"], "aaa", **apart)
    host = socket.gethostname()
    assert all(f"since node 0 ({host}), node 2 ({host}) sees there what" in said for said in found.values())


def test_a_folder_that_a_node_may_not_write_is_named_on_every_node(tmp_path):
    (tmp_path / "file").touch()
    found = compared([tmp_path / "one", tmp_path / "file" / "two"])
    assert (
        found[0] == found[1] == f"node 1: {tmp_path / 'file' / 'two'}: Not a directory; it is not there, or was removed or "
        "renamed while this ran."
    )
