# cython: auto_pickle=False
"""The part of FUSE that pyfuse3 does not show: locks, interrupts, passthrough, and who asks.

How it works. ``_bridge.h`` defines ``fuse_session_new``. This module is loaded with RTLD_GLOBAL
before pyfuse3, so pyfuse3's call of it comes here, with pyfuse3's table of operations. We hand
libfuse a table of our own:

* Each of pyfuse3's operations has a wrapper of two lines (``_operations.pxi``): *note* who asks in
  a C struct, then call pyfuse3's. pyfuse3 makes a coroutine and runs its first step in the same
  trio task before anything else can happen, so in that step ``caller()`` finds the right request.
  The task is noted too: asked from anywhere else, ``caller()`` raises; it never answers with
  another's request.
* getlk, setlk and flock, which pyfuse3 lacks, become a LockRequest for the lock handler. With them
  in the table libfuse asks the kernel for POSIX_LOCKS and FLOCK_LOCKS (do_init,
  lib/fuse_lowlevel.c). fallocate answers EOPNOTSUPP.
* An INTERRUPT from the kernel reaches ``interrupted_by_kernel`` (fuse_req_interrupt_func). libfuse
  holds the request's mutex there, and a reply would free it, so the news only travels on
  through trio's loop. What libfuse keeps for us is a number, not a pointer: if the object that it
  stands for is gone, nothing happens.
* Passthrough, which libfuse knows from 3.17 on only, is laid into its messages to the kernel
  (fuse_session_custom_io): into the reply to INIT, and into the replies to those opens that Python
  has named a backing file for. Our fuse_reply_open and fuse_reply_create, found in place of
  libfuse's, say which open is being answered.

All of it runs in trio's thread with the GIL held, for so pyfuse3 calls fuse_session_process_buf.
"""

import logging
from fcntl import ioctl
from struct import pack
from weakref import WeakValueDictionary

from trio.lowlevel import current_task, current_trio_token

cimport cython
from libc.errno cimport EIO, ENOTCONN, EOPNOTSUPP
from libc.stdint cimport INT64_MAX, uint64_t
from libc.string cimport memcpy, memset

from mailfs.fuse._libfuse cimport *

log = logging.getLogger(__name__)

cdef fuse_lowlevel_ops theirs  # pyfuse3's operations
cdef fuse_lowlevel_ops ours  # what libfuse calls
cdef bint session_made = False
# Goes up when a session is made and when it is destroyed: requests of earlier ones are not touched.
cdef uint64_t generation = 0
cdef object lock_handler = None


# --------------------------------------------------------------------------------------------------
# Who asks

cdef enum:
    HANDLE = 1  # the request came through an open handle, so fh means something
    PARKS = 2  # the request may wait, and so may be interrupted

cdef struct Request:
    bint valid
    fuse_req_t req
    uint64_t unique
    const char *name
    int traits
    int pid
    unsigned uid
    unsigned gid
    uint64_t ino
    uint64_t fh
    int flags
    uint64_t lock_owner
    bint flush
    bint flock_release

cdef Request now  # the request whose handler runs
cdef object now_task = None  # the trio task it runs in
memset(&now, 0, sizeof(now))


cdef void note(fuse_req_t req, const char *name, fuse_ino_t ino, fuse_file_info *fi,
               int traits) noexcept:
    """Remember who asks; fi is NULL if the kernel sent no handle."""
    global now_task
    cdef const fuse_ctx *context = fuse_req_ctx(req)
    now.unique += 1
    now.req = req
    now.name = name
    now.traits = traits
    now.pid = context.pid
    now.uid = context.uid
    now.gid = context.gid
    now.ino = ino
    if fi is not NULL:
        now.fh = fi.fh
        now.flags = fi.flags
        now.lock_owner = fi.lock_owner
        now.flush = fi.flush
        now.flock_release = fi.flock_release
    else:
        now.traits &= ~HANDLE
        now.flags = 0
        now.lock_owner = 0
        now.flush = False
        now.flock_release = False
    try:
        now_task = current_task()
        now.valid = True
    except BaseException:  # not in trio: pyfuse3's handler will not get far either
        now.valid = False
        log.exception("a request was processed outside trio")


cdef bint in_handler() except -1:
    """Whether whoever asks runs in the task of the request noted last."""
    if not now.valid:
        return False
    try:
        return current_task() is now_task
    except RuntimeError:
        return False


@cython.final
@cython.freelist(8)
cdef class Caller:
    """Who asks, and how: what the kernel sends and pyfuse3 does not pass on. Immutable.

    Attributes:
        unique: a number of our own for the request (libfuse does not tell the kernel's).
        name: the operation, as pyfuse3 names it: "getattr", "write", "readdir" and so on.
        pid: the calling *thread* (fuse_get_req, fs/fuse/dev.c); 0 if it is in another pid namespace
            and in a release, which nobody in particular sends (nocreds, fs/fuse/file.c).
        uid, gid: the file system ids of the caller; 0 in a release.
        ino: the node, or the parent directory if the operation takes a name in it.
        fh: the open handle the request came through; None if there is none (yet), as in stat(),
            open() and, as the kernel is, fstat(). A getattr has one for lseek(SEEK_END).
        flags: the handle's open flags as they are now in read, write, release and releasedir, as
            asked for in open, create and opendir; else 0.
        lock_owner: the owner of record locks, in flush and, where the kernel sends it, read and
            write; in a release with flock_release the owner of flock locks; else 0.
        flush: True in flush, and in a release with FUSE_RELEASE_FLUSH.
        flock_release: True in a release of a handle on which flock() was used.

    The keyword arguments are for tests of handlers without a mount.
    """

    cdef readonly uint64_t unique
    cdef readonly str name
    cdef readonly int pid
    cdef readonly unsigned uid
    cdef readonly unsigned gid
    cdef readonly uint64_t ino
    cdef readonly object fh
    cdef readonly int flags
    cdef readonly uint64_t lock_owner
    cdef readonly bint flush
    cdef readonly bint flock_release

    def __init__(self, name, *, unique=0, pid=0, uid=0, gid=0, ino=0, fh=None, flags=0,
                 lock_owner=0, flush=False, flock_release=False):
        self.unique = unique
        self.name = name
        self.pid = pid
        self.uid = uid
        self.gid = gid
        self.ino = ino
        self.fh = fh
        self.flags = flags
        self.lock_owner = lock_owner
        self.flush = flush
        self.flock_release = flock_release

    def __repr__(self):
        return (f"Caller({self.name!r}, unique={self.unique}, pid={self.pid}, uid={self.uid}, "
                f"gid={self.gid}, ino={self.ino}, fh={self.fh}, flags={self.flags:#o}, "
                f"lock_owner={self.lock_owner:#x}, flush={self.flush}, "
                f"flock_release={self.flock_release})")


def caller():
    """Who asks: to be called in a handler before its first await.

    Raises:
        RuntimeError: outside a handler, and mostly after its first await (if no other request came
            in the meantime, it is still answered, and rightly).
    """
    cdef Caller result
    if not in_handler():
        raise RuntimeError("caller() was called outside the first step of a request's handler")
    result = Caller.__new__(Caller)
    result.unique = now.unique
    result.name = now.name.decode("ascii")
    result.pid = now.pid
    result.uid = now.uid
    result.gid = now.gid
    result.ino = now.ino
    result.fh = now.fh if now.traits & HANDLE else None
    result.flags = now.flags
    result.lock_owner = now.lock_owner
    result.flush = now.flush
    result.flock_release = now.flock_release
    return result


# --------------------------------------------------------------------------------------------------
# Interrupts

cdef object watched = WeakValueDictionary()  # Request.unique -> Interrupt


cdef void interrupted_by_kernel(fuse_req_t req, void *data) noexcept:
    """Called by libfuse with the request's mutex held: never reply here.

    From find_interrupted when the INTERRUPT comes, or from fuse_req_interrupt_func itself if it has
    come before (lib/fuse_lowlevel.c).
    """
    try:
        found = watched.get(<size_t> data)
        if found is not None:
            (<Interrupt> found).fire()
    except BaseException:
        log.exception("an interrupt was lost")


cdef class Interrupt:
    """Whether the client of a request has given up waiting. To be kept for as long as you wait.

    Attributes:
        unique: as in Caller.
        fired: True from the moment the kernel's INTERRUPT was read.
    """

    cdef object __weakref__
    cdef readonly uint64_t unique
    cdef readonly bint fired
    cdef object callback

    cdef int watch(self, fuse_req_t req) except -1:
        """Have libfuse tell us. fuse_free_req forgets it when the request is answered."""
        watched[self.unique] = self
        fuse_req_interrupt_func(req, interrupted_by_kernel, <void *> <size_t> self.unique)
        return 0

    cdef int fire(self) except -1:
        if not self.fired:
            self.fired = True
            if self.callback is not None:
                current_trio_token().run_sync_soon(self._deliver)
        return 0

    cdef bint over(self) noexcept:
        """Whether nobody waits any more."""
        return False

    def _deliver(self):
        """Run the callback, from trio's loop, where an exception would be the end of the daemon."""
        callback, self.callback = self.callback, None
        if callback is None or self.over():
            return
        try:
            callback()
        except Exception:
            log.exception("the callback of an interrupt failed")

    def on_interrupt(self, callback):
        """Have callback called once, soon, from trio's loop: it may answer. None takes it back.

        Also if the interrupt has fired before; never after the answer of a LockRequest. A later
        call replaces the callback. For a handler, ``cancel`` of the scope it waits in will do.
        """
        if self.over():
            return
        self.callback = callback
        if self.fired and callback is not None:
            current_trio_token().run_sync_soon(self._deliver)


def watch_interrupt():
    """Watch the request being handled: to be called in its handler before the first await.

    Called again it gives the same object.

    Raises:
        RuntimeError: outside a handler, or for an operation that must not wait (all but open,
            create, read and flush: the kernel holds locks during the others).
    """
    cdef Interrupt result
    if not in_handler():
        raise RuntimeError(
            "watch_interrupt() was called outside the first step of a request's handler"
        )
    if not now.traits & PARKS:
        raise RuntimeError(f"a {now.name.decode('ascii')} request must not wait")
    found = watched.get(now.unique)
    if found is not None:
        return found
    result = Interrupt.__new__(Interrupt)
    result.unique = now.unique
    result.watch(now.req)
    return result


# --------------------------------------------------------------------------------------------------
# Locks

@cython.final
cdef class LockRequest(Interrupt):
    """A getlk, setlk or flock that waits for its one answer. Dropped unanswered, it gets EIO.

    Attributes:
        name: "getlk", "setlk" or "flock".
        pid, uid, gid, ino: as in Caller.
        fh: the handle the lock was asked for on.
        owner: who will own the lock: a process's table of files (POSIX locks; the lock_owner of
            flush) or an open file description (OFD locks and flock; the lock_owner of a release
            with flock_release). Ids of both kinds come from one space (fuse_lock_owner_id).
        wait: True for F_SETLKW, F_OFD_SETLKW and flock() without LOCK_NB.
        type: F_RDLCK, F_WRLCK or F_UNLCK, for flock too.
        start, end: the first byte and the last, inclusive; end is 2**63-1 for "and all after".
        lock_pid: the *process* that record locks are reported under; 0 in an unlock and for flock.
    """

    cdef fuse_req_t req  # NULL once answered: libfuse has freed it
    cdef uint64_t generation
    cdef readonly str name
    cdef readonly int pid
    cdef readonly unsigned uid
    cdef readonly unsigned gid
    cdef readonly uint64_t ino
    cdef readonly uint64_t fh
    cdef readonly uint64_t owner
    cdef readonly bint wait
    cdef readonly int type
    cdef readonly long long start
    cdef readonly long long end
    cdef readonly int lock_pid

    cdef bint over(self) noexcept:
        return self.req is NULL

    @property
    def answered(self):
        """True once it was answered."""
        return self.req is NULL

    @property
    def interrupted(self):
        """True once the client has given up; right in the handler too, where fired is not yet."""
        if self.req is not NULL and self.generation == generation:
            return self.fired or fuse_req_interrupted(self.req) != 0
        return self.fired

    cdef fuse_req_t take(self) except? NULL:
        """The request, to be answered now and never again; NULL if its session is gone."""
        cdef fuse_req_t req = self.req
        if req is NULL:
            raise RuntimeError(f"{self!r} was answered before")
        self.req = NULL
        self.callback = None
        return req if self.generation == generation else NULL

    def reply(self, int errno=0):
        """Answer setlk or flock with success or an errno, getlk with an errno.

        If the session or the client is gone, the answer is lost without a word.

        Raises:
            RuntimeError: it was answered before, or success for getlk.
            ValueError: no errno (fuse_send_reply_iov_nofree would send ERANGE).
        """
        cdef fuse_req_t req
        if not 0 <= errno < 1000:
            raise ValueError(f"{errno} is no errno")
        if errno == 0 and self.name == "getlk" and self.req is not NULL:
            raise RuntimeError("success of getlk is answered by reply_lock")
        req = self.take()
        if req is not NULL:
            fuse_reply_err(req, errno)  # frees req even if it fails (ENOENT: connection aborted)

    def reply_lock(self, int type, long long start=0, long long end=INT64_MAX, int pid=0):
        """Answer getlk with the lock in the way, or with F_UNLCK if there is none.

        Raises:
            RuntimeError: it was answered before, or is no getlk.
            ValueError: no lock (the kernel's convert_fuse_file_lock would make it EIO).
        """
        cdef flock lock
        cdef fuse_req_t req
        if self.name != "getlk":
            raise RuntimeError(f"{self.name} is answered by reply")
        if type not in (F_RDLCK, F_WRLCK, F_UNLCK) or not 0 <= start <= end:
            raise ValueError(f"no lock: type {type}, from {start} to {end}")
        req = self.take()
        if req is not NULL:
            memset(&lock, 0, sizeof(lock))
            lock.l_type = <short> type
            lock.l_whence = SEEK_SET
            lock.l_start = start
            lock.l_len = 0 if end == INT64_MAX else end - start + 1  # turned back by libfuse
            lock.l_pid = pid
            fuse_reply_lock(req, &lock)

    def __del__(self):
        if self.req is not NULL and self.generation == generation:
            log.error("%r was dropped without an answer; answered EIO", self)
            self.reply(EIO)

    def __repr__(self):
        kind = {F_RDLCK: "read", F_WRLCK: "write", F_UNLCK: "unlock"}.get(self.type, self.type)
        return (f"<{self.name} {kind} {self.start}-{self.end} ino={self.ino} fh={self.fh} "
                f"owner={self.owner:#x} pid={self.pid} uid={self.uid}"
                f"{' wait' if self.wait else ''}>")


cdef LockRequest lock_request(str name, fuse_req_t req, fuse_ino_t ino, fuse_file_info *fi):
    """What all three have in common; fi holds fh and owner (do_getlk, do_setlk_common)."""
    cdef const fuse_ctx *context = fuse_req_ctx(req)
    cdef LockRequest request = LockRequest.__new__(LockRequest)
    now.valid = False  # what this task handled before is over
    now.unique += 1
    request.unique = now.unique
    request.req = req
    request.generation = generation
    request.name = name
    request.pid = context.pid
    request.uid = context.uid
    request.gid = context.gid
    request.ino = ino
    request.fh = fi.fh
    request.owner = fi.lock_owner
    return request


cdef void set_range(LockRequest request, const flock *lock) noexcept:
    """Undo libfuse's convert_fuse_file_lock: the kernel's end is inclusive, OFFSET_MAX at most."""
    request.type = lock.l_type
    request.start = lock.l_start
    request.end = INT64_MAX if lock.l_len == 0 else lock.l_start + (lock.l_len - 1)
    request.lock_pid = lock.l_pid


cdef int hand_over(LockRequest request) except -1:
    """Call the handler; what it leaves unanswered is watched for an interrupt."""
    try:
        getattr(lock_handler, request.name)(request)
    except BaseException:
        log.exception("the lock handler failed at %r", request)
        if request.req is not NULL:
            request.reply(EIO)
    if request.req is not NULL:
        request.watch(request.req)
    return 0


cdef void on_getlk(fuse_req_t req, fuse_ino_t ino, fuse_file_info *fi, flock *lock) noexcept:
    """F_GETLK and F_OFD_GETLK (fuse_getlk, fs/fuse/file.c)."""
    cdef LockRequest request = lock_request("getlk", req, ino, fi)
    set_range(request, lock)
    hand_over(request)


cdef void on_setlk(fuse_req_t req, fuse_ino_t ino, fuse_file_info *fi, flock *lock,
                   int sleep) noexcept:
    """F_SETLK, F_SETLKW and their OFD kin, told apart by the owner alone (fuse_setlk)."""
    cdef LockRequest request = lock_request("setlk", req, ino, fi)
    set_range(request, lock)
    request.wait = sleep != 0
    hand_over(request)


cdef void on_flock(fuse_req_t req, fuse_ino_t ino, fuse_file_info *fi, int op) noexcept:
    """The kernel sends a SETLK with FUSE_LK_FLOCK; libfuse makes it flock() again."""
    cdef LockRequest request = lock_request("flock", req, ino, fi)
    request.wait = not op & LOCK_NB
    op &= ~LOCK_NB
    request.type = F_RDLCK if op == LOCK_SH else F_WRLCK if op == LOCK_EX else F_UNLCK
    request.end = INT64_MAX
    hand_over(request)


def set_lock_handler(handler):
    """Say who answers locks; to be called before pyfuse3.init().

    If none was set when the session was made, the kernel keeps locks to itself.

    Raises:
        RuntimeError: the session was made without one.
    """
    global lock_handler
    if handler is None:
        raise TypeError("locks need a handler")
    if session_made and lock_handler is None:
        raise RuntimeError("set_lock_handler() must come before pyfuse3.init()")
    lock_handler = handler


# --------------------------------------------------------------------------------------------------
# Passthrough (Documentation/filesystems/fuse/fuse-passthrough.rst, fs/fuse/backing.c)

FUSE_DEV_IOC_BACKING_OPEN = 1 << 30 | 16 << 16 | 229 << 8 | 1  # _IOW(229, 1, fuse_backing_map)
FUSE_DEV_IOC_BACKING_CLOSE = 1 << 30 | 4 << 16 | 229 << 8 | 2  # _IOW(229, 2, uint32_t)

cdef dict backings = {}  # handle -> backing id, for opens that are not answered yet


cdef int backing_of(uint64_t fh) noexcept:
    """The backing id for the reply that gives out fh; called by our fuse_reply_open."""
    return backings.pop(fh, 0)


cdef void forget_session() noexcept:
    """The session is about to be freed."""
    global bridge_session, bridge_agreed
    bridge_session = NULL
    bridge_agreed = 0
    backings.clear()


cdef int connection() except -1:
    cdef int fd = bridge_fd()
    if fd < 0:
        raise OSError(ENOTCONN, "nothing is mounted")
    return fd


def want_passthrough(bint wanted=True):
    """Say whether to ask the kernel for passthrough; to be called before pyfuse3.init()."""
    global bridge_wanted
    bridge_wanted = wanted


def passthrough_agreed():
    """Whether kernel and mount use passthrough; right from the first request on."""
    return bool(bridge_agreed)


def open_backing(int fd):
    """Have the kernel know the real file that is open as fd; returns its backing id (positive).

    The file stays open in the kernel until close_backing(), or for as long as handles use it.

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN or without passthrough, ELOOP if the file is on a
            stacked file system, EOPNOTSUPP or EINVAL if it cannot be passed through to
            (fuse_backing_open, fs/fuse/backing.c); ENOTTY before Linux 6.9; ENOTCONN if nothing
            is mounted.
    """
    argument = bytearray(pack("=iIQ", fd, 0, 0))
    return ioctl(connection(), FUSE_DEV_IOC_BACKING_OPEN, argument)


def close_backing(int backing):
    """Give back a backing id; handles that use its file keep it.

    Raises:
        OSError: ENOENT for an id that is not known, ENOTCONN if nothing is mounted.
    """
    ioctl(connection(), FUSE_DEV_IOC_BACKING_CLOSE, bytearray(pack("=I", backing)))


def pass_through(fh, int backing):
    """Have the open that is about to be answered with handle fh pass through to a backing file.

    To be called before the handler of open or create returns. With ``direct_io`` in its FileInfo
    reads and writes still come to us, and only mappings go to the file; ``keep_cache`` is not
    allowed (FOPEN_PASSTHROUGH_MASK, fs/fuse/iomode.c). As long as a node has a handle with
    passthrough, open() of it fails with EIO if the reply has none, or has another backing id
    (fuse_file_io_open and fuse_inode_uncached_io_start, likewise).

    Args:
        fh: the handle; no other open may be answered with the same number meanwhile.
        backing: from open_backing().
    """
    if backing <= 0:
        raise ValueError(f"{backing} is no backing id")
    backings[fh] = backing


# --------------------------------------------------------------------------------------------------
# Interposition

include "_operations.pxi"


cdef const fuse_lowlevel_ops *take(const fuse_lowlevel_ops *op, size_t op_size) noexcept:
    """Our operations for pyfuse3's.

    The table starts empty: what a later pyfuse3 may handle and we do not wrap, libfuse answers
    ENOSYS. Either side may have been built with the headers of an older libfuse.
    """
    memset(&theirs, 0, sizeof(theirs))
    memcpy(&theirs, op, min(op_size, sizeof(theirs)))
    memset(&ours, 0, sizeof(ours))
    wrap()
    if lock_handler is not None:
        ours.getlk = on_getlk
        ours.setlk = on_setlk
        ours.flock = on_flock
    return &ours


cdef void opened() noexcept:
    """libfuse made the session."""
    global session_made, generation
    session_made = True
    generation += 1


def interposed():
    """True once pyfuse3.init() made its session through us. If not, locks do not reach us."""
    return session_made


bridge_take = take
bridge_opened = opened
bridge_backing_of = backing_of
