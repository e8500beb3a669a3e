"""The table of nodes: what the kernel holds, what it gave back, and what its numbers mean."""

from __future__ import annotations

from mailfs.fuse.lockfile import LockFile
from mailfs.fuse.nodes import ROOT, VIRTUAL, FileNode, LockNode, NodeTable


def table() -> NodeTable:
    return NodeTable(FileNode(ROOT, "root", None, b""))


def test_a_forgotten_node_that_something_keeps_can_be_told_of_again() -> None:
    """A lock keeps its lock file; the kernel may drop its dentry and look the name up again."""
    nodes = table()
    node = LockNode(nodes.virtual(), "lock", LockFile(b"alice", 1, 1))
    nodes.add(node)
    nodes.refer(node)
    nodes.forget(node.number, 1)
    assert nodes.get(node.number) is None
    nodes.refer(node)
    assert nodes.get(node.number) is node
    assert nodes.find("lock") is node


def test_a_number_that_comes_back_is_of_another_generation() -> None:
    nodes = table()
    old = FileNode(77, ("file", 1), nodes.root, b"old")
    nodes.add(old)
    nodes.refer(old)
    nodes.detach(old)
    new = FileNode(77, ("file", 2), nodes.root, b"new")
    nodes.add(new)
    nodes.refer(new)
    assert new.generation == old.generation + 1
    nodes.forget(77, 2)  # FORGET names numbers: both references
    assert nodes.get(77) is None


def test_a_file_has_several_names() -> None:
    nodes = table()
    directory = FileNode(5, "d", nodes.root, b"d")
    node = FileNode(6, "f", directory, b"one")
    node.seen_as(directory, b"two")
    assert node.path == (b"d", b"two")
    node.gone_from(directory, b"two")
    assert node.path == (b"d", b"one")
    node.gone_from(directory, b"one")
    assert node.path == (b"d", b"one"), "the last name known"
    directory.seen_as(nodes.root, b"e", only=True)
    assert node.path == (b"e", b"one")


def test_the_root_is_never_forgotten() -> None:
    nodes = table()
    nodes.forget(ROOT, 5)
    assert nodes.get(ROOT) is nodes.root
    nodes.forget(12345, 1)


def test_virtual_numbers_are_out_of_the_way() -> None:
    nodes = table()
    assert nodes.virtual() > VIRTUAL
    assert nodes.real(99) == 99
    assert nodes.real(ROOT) > VIRTUAL
