"""A FUSE filesystem that answers wrongly: garbage.py MOUNTPOINT MODE. Speaks the kernel's protocol (linux/fuse.h) by itself; prints a line when it is mounted.

  /f /g /d/in   files with their own names in them     /l  a symlink     /e  an empty directory
  /d/hang*      in mode hang: nobody who looks one up is ever answered
  in mode silent nobody who asks for anything is ever answered, and in mode alone, too, which only the one who mounted it may look at
"""

import ctypes
import os
import stat
import struct
import sys

PLACE, MODE = sys.argv[1:]
DIR, FILE, LINK = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777
LOOKUP, GETATTR, READLINK, OPEN, READ, STATFS, RELEASE, FLUSH = 1, 3, 5, 14, 15, 17, 18, 25
GETXATTR, LISTXATTR, INIT, OPENDIR, READDIR, RELEASEDIR, DESTROY, FORGET, BATCH_FORGET = 22, 23, 26, 27, 28, 29, 38, 2, 42

device = os.open("/dev/fuse", os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
options = "fd=%d,rootmode=40000,user_id=0,group_id=0" % device
options += "" if MODE == "alone" else ",allow_other"
if libc.mount(b"garbage", PLACE.encode(), b"fuse.garbage", 0, options.encode()):
    sys.exit("mount: " + os.strerror(ctypes.get_errno()))

nodes = {1: DIR}
entries = {}


def add(parent, name, mode):
    node = len(nodes) + 1
    nodes[node] = mode
    entries[parent, name] = node
    return node


d, f, g, _, _ = (add(1, name, mode) for name, mode in (("d", DIR), ("f", FILE), ("g", FILE), ("l", LINK), ("e", DIR)))
inner = add(d, "in", FILE)
data = {f: b"f\n", g: b"g\n", inner: b"in\n"}


def attributes(node):
    mode = nodes[node]
    number, size, links, nanoseconds, blocks = node, len(data.get(node, b"")), 1, 0, 1
    if node != 1:
        number = {"number-0": 0, "number-max": 2**64 - 1 - node}.get(MODE, number)
        links = {"links-0": 0, "links-max": 2**32 - 1}.get(MODE, links)
        nanoseconds = 2**32 - 1 if MODE == "nanoseconds" else 0
        blocks = 2**64 - 1 if MODE == "blocks" else 1
        if stat.S_ISREG(mode):
            size = {"size-max": 2**63 - 1, "size-negative": 2**63}.get(MODE, size)
    owner = 2**32 - 1 if MODE == "owner" and node != 1 else 0
    return struct.pack("<6Q10I", number, size, blocks, 5, 5, 5, *[nanoseconds] * 3, mode, links, owner, owner, 0, 4096, 0)


def entry(node):
    return struct.pack("<QQQQII", node, 0, 0, 0, 0, 0) + attributes(node)


def answer(unique, error, reply=b""):
    try:
        os.write(device, struct.pack("<IiQ", 16 + len(reply), -error, unique) + reply)
    except OSError:
        # Some garbage the kernel refuses itself; if it still waits, it is told of an error.
        try:
            os.write(device, struct.pack("<IiQ", 16, -5, unique))
        except OSError:
            pass


def listed(node, offset, size):
    found = [(name, child) for (parent, name), child in entries.items() if parent == node]
    if MODE == "circle" and node == d:
        found = [("again", d)]
    if MODE == "slash":
        found += [("a/b", f), ("..", d)]
    if MODE == "twice":
        found += found
    # One that gives the same names whatever is asked for has no end.
    endless = MODE == "endless" and node == d
    out = b""
    for at, (name, child) in enumerate(found if endless else found[offset:], offset + 1):
        kind = nodes[child] >> 12
        kind = {"kinds": {4: 8, 8: 4}.get(kind, kind), "no-kind": 15}.get(MODE, kind)
        raw = struct.pack("<QQII", child, at, len(name), kind) + name.encode()
        raw += bytes(-len(raw) % 8)
        if len(out) + len(raw) > size:
            break
        out += raw
    return out


print("mounted", flush=True)
while True:
    try:
        request = os.read(device, 1 << 20)
    except OSError:
        break
    _, code, unique, node, _, _, _, _ = struct.unpack("<IIQQIIII", request[:40])
    body = request[40:]
    if code == INIT:
        answer(unique, 0, struct.pack("<IIIIHHIIHH", 7, 31, 131072, 0, 12, 10, 131072, 1, 32, 0).ljust(64, b"\0"))
    elif MODE in ("silent", "alone"):
        continue
    elif code == LOOKUP:
        name = body.split(b"\0")[0].decode()
        if MODE == "hang" and name.startswith("hang"):
            continue
        if MODE == "circle" and name == "again":
            entries.setdefault((node, name), len(nodes) + 1)
            nodes.setdefault(entries[node, name], DIR)
        child = entries.get((node, name))
        answer(unique, 2) if child is None else answer(unique, 0, entry(child))
    elif code == GETATTR:
        if MODE == "changing" and node != 1:
            nodes[node] ^= stat.S_IFDIR ^ stat.S_IFREG
        answer(unique, 0, struct.pack("<QII", 0, 0, 0) + attributes(node))
    elif code == READLINK:
        answer(unique, 0, b"a\0b" if MODE == "target" else b"/proc/self/root")
    elif code in (OPEN, OPENDIR):
        answer(unique, 0, struct.pack("<QII", node, 0, 0))
    elif code == READ:
        _, offset, size = struct.unpack("<QQI", body[:20])
        content = data.get(node, b"") + (b"x" * 100000 if MODE == "longer" else b"")
        content = content[:1] if MODE == "shorter" else content
        answer(unique, 0, content[offset : offset + size])
    elif code == READDIR:
        _, offset, size = struct.unpack("<QQI", body[:20])
        answer(unique, 0, listed(node, offset, size))
    elif code == GETXATTR:
        answer(unique, 0, b"y" * 70000) if MODE == "attribute" and node != 1 else answer(unique, 61)
    elif code == LISTXATTR:
        size = struct.unpack("<I", body[:4])[0]
        names = b"\0\0no-end" if MODE == "attributes" and node != 1 else b""
        answer(unique, 0, names if size else struct.pack("<II", len(names), 0))
    elif code == STATFS:
        answer(unique, 0, struct.pack("<5Q4I", 100, 50, 50, 100, 50, 4096, 255, 4096, 0) + bytes(24))
    elif code in (RELEASE, RELEASEDIR, FLUSH):
        answer(unique, 0)
    elif code == DESTROY:
        break
    elif code not in (FORGET, BATCH_FORGET, 36):
        answer(unique, 38)
