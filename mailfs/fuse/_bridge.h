/* The symbols that pyfuse3's calls of fuse_session_new, fuse_reply_open and fuse_reply_create bind
 * to, in place of libfuse's; and what completes libfuse's messages to the kernel with passthrough,
 * which libfuse before 3.17 does not know.
 *
 * This is C and not Cython because newer libfuse makes fuse_session_new a macro (fuse_lowlevel.h
 * since 3.17). Nothing here touches Python: that is for the functions set by _bridge.pyx.
 */
#ifndef MAILFS_BRIDGE_H
#define MAILFS_BRIDGE_H

#define FUSE_USE_VERSION 32
#include <dlfcn.h>
#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
/* libfuse does not agree with itself about the type (3.18 has version, later const version). */
#define fuse_session_new_versioned declared_by_libfuse
#include <fuse_lowlevel.h>
#undef fuse_session_new_versioned
#undef fuse_session_new

#define EXPORTED __attribute__((visibility("default")))
#define INTERPOSED EXPORTED struct fuse_session *

/* Given pyfuse3's operations, returns ours: the same, wrapped, and the lock operations. */
static const struct fuse_lowlevel_ops *(*bridge_take)(const struct fuse_lowlevel_ops *, size_t);
/* Told that libfuse made the session. */
static void (*bridge_opened)(void);
/* libfuse 3.17's fuse_session_new (lib/compat.c) calls fuse_session_new_versioned, and if it does
 * so by name, that call reaches us too. */
static int bridge_inside;

/* The next definition in link order, which is libfuse's, as this module is linked with it. */
static void *bridge_next(const char *name, const char *version)
{
    void *found = dlvsym(RTLD_NEXT, name, version);

    if (found == NULL)
        found = dlsym(RTLD_NEXT, name);
    if (found == NULL)
        fuse_log(FUSE_LOG_ERR, "mailfs: libfuse has no %s\n", name);
    return found;
}

/* Passthrough. All offsets and numbers are those of include/uapi/linux/fuse.h (protocol 7.40, Linux
 * 6.9), which is not on every machine that this is built on. */
enum {
    BRIDGE_INIT = 26,              /* FUSE_INIT */
    BRIDGE_IN_OPCODE = 4,          /* struct fuse_in_header, 40 bytes: opcode, unique */
    BRIDGE_IN_UNIQUE = 8,
    BRIDGE_IN_SIZE = 40,
    BRIDGE_INIT_IN_FLAGS = 52,     /* struct fuse_init_in behind it: flags, flags2 */
    BRIDGE_INIT_IN_FLAGS2 = 56,
    BRIDGE_OUT_ERROR = 4,          /* struct fuse_out_header, 16 bytes: error, unique */
    BRIDGE_OUT_UNIQUE = 8,
    BRIDGE_OUT_SIZE = 16,
    BRIDGE_INIT_OUT_FLAGS = 12,    /* struct fuse_init_out: flags, flags2, max_stack_depth */
    BRIDGE_INIT_OUT_FLAGS2 = 32,
    BRIDGE_INIT_OUT_DEPTH = 36,
    BRIDGE_INIT_OUT_SIZE = 64,
    BRIDGE_OPEN_FLAGS = 8,         /* struct fuse_open_out: open_flags, backing_id */
    BRIDGE_OPEN_BACKING = 12,
    BRIDGE_OPEN_SIZE = 16,
    BRIDGE_ENTRY_SIZE = 128,       /* struct fuse_entry_out, before it in the reply to CREATE */
};
#define BRIDGE_INIT_EXT (1u << 30) /* FUSE_INIT_EXT: flags2 means something */
#define BRIDGE_MMAP (1u << 4)      /* FUSE_DIRECT_IO_ALLOW_MMAP >> 32 */
#define BRIDGE_PASSTHROUGH (1u << 5) /* FUSE_PASSTHROUGH >> 32 */
#define BRIDGE_FOPEN_PASSTHROUGH (1u << 7)

static struct fuse_session *bridge_session; /* the one made last, until it is destroyed */
static int bridge_wanted;                   /* passthrough is to be asked for */
static int bridge_agreed;                   /* the kernel was told that we use it */
static uint64_t bridge_init_unique;         /* the INIT that is not answered yet; 0: none */
static uint32_t bridge_offered;             /* its flags2 */
/* Which backing id the open that gives out handle fh is to get; 0: none. Asked once for each. */
static int (*bridge_backing_of)(uint64_t fh);
/* The backing id that belongs into the reply being sent by this thread; notifications are sent by
 * other threads meanwhile. */
static __thread int32_t bridge_backing;

static uint32_t bridge_get(const char *at)
{
    uint32_t value;

    memcpy(&value, at, sizeof(value));
    return value;
}

static void bridge_or(char *at, uint32_t bits)
{
    uint32_t value = bridge_get(at) | bits;

    memcpy(at, &value, sizeof(value));
}

/* Tell the kernel that we use passthrough, if it can and libfuse has not said so itself.
 * process_init_reply (fs/fuse/inode.c) wants a stack depth of at least 1: what lies beneath is then
 * no stacked file system itself (fuse_backing_open, fs/fuse/backing.c). */
static int bridge_complete_init(char *out, size_t size)
{
    const uint32_t depth = 1;

    if (size < BRIDGE_INIT_OUT_SIZE || !bridge_wanted)
        return 0;
    if (bridge_get(out + BRIDGE_INIT_OUT_FLAGS2) & BRIDGE_PASSTHROUGH)
        return 0;
    if (!(bridge_get(out + BRIDGE_INIT_OUT_FLAGS) & BRIDGE_INIT_EXT) ||
        (~bridge_offered & (BRIDGE_PASSTHROUGH | BRIDGE_MMAP)))
        return 0;
    bridge_or(out + BRIDGE_INIT_OUT_FLAGS2, BRIDGE_PASSTHROUGH | BRIDGE_MMAP);
    memcpy(out + BRIDGE_INIT_OUT_DEPTH, &depth, sizeof(depth));
    bridge_agreed = 1;
    return 1;
}

/* Lay the backing id into the reply to an open (fuse_file_passthrough_open, fs/fuse/iomode.c). */
static int bridge_complete_open(char *out, size_t size, int32_t backing)
{
    if (size == BRIDGE_ENTRY_SIZE + BRIDGE_OPEN_SIZE)
        out += BRIDGE_ENTRY_SIZE;
    else if (size != BRIDGE_OPEN_SIZE)
        return 0;
    if (bridge_get(out + BRIDGE_OPEN_FLAGS) & BRIDGE_FOPEN_PASSTHROUGH)
        return 0;
    bridge_or(out + BRIDGE_OPEN_FLAGS, BRIDGE_FOPEN_PASSTHROUGH);
    memcpy(out + BRIDGE_OPEN_BACKING, &backing, sizeof(backing));
    return 1;
}

/* Every message to the kernel: libfuse sends the header and the rest as two pieces
 * (fuse_send_reply_iov_nofree, lib/fuse_lowlevel.c). What is changed is changed in a copy. */
static ssize_t bridge_writev(int fd, struct iovec *iov, int count, void *userdata)
{
    char copy[BRIDGE_ENTRY_SIZE + BRIDGE_OPEN_SIZE];
    struct iovec changed[2];
    const char *header;
    int32_t backing = bridge_backing;
    uint64_t unique;
    int done = 0;

    (void) userdata;
    bridge_backing = 0;
    if ((backing <= 0 && bridge_init_unique == 0) || count != 2 ||
        iov[0].iov_len != BRIDGE_OUT_SIZE || iov[1].iov_len > sizeof(copy))
        return writev(fd, iov, count);
    header = iov[0].iov_base;
    memcpy(&unique, header + BRIDGE_OUT_UNIQUE, sizeof(unique));
    if (unique == 0 || bridge_get(header + BRIDGE_OUT_ERROR) != 0) /* 0: a notification */
        return writev(fd, iov, count);
    memcpy(copy, iov[1].iov_base, iov[1].iov_len);
    if (unique == bridge_init_unique) {
        bridge_init_unique = 0;
        done = bridge_complete_init(copy, iov[1].iov_len);
    } else if (backing > 0) {
        done = bridge_complete_open(copy, iov[1].iov_len, backing);
    }
    if (!done)
        return writev(fd, iov, count);
    changed[0] = iov[0];
    changed[1].iov_base = copy;
    changed[1].iov_len = iov[1].iov_len;
    return writev(fd, changed, 2);
}

/* Every request; INIT is noted. */
static ssize_t bridge_read(int fd, void *buffer, size_t size, void *userdata)
{
    ssize_t got = read(fd, buffer, size);
    const char *in = buffer;

    (void) userdata;
    if (got >= BRIDGE_INIT_IN_FLAGS2 + 4 && bridge_get(in + BRIDGE_IN_OPCODE) == BRIDGE_INIT) {
        memcpy(&bridge_init_unique, in + BRIDGE_IN_UNIQUE, sizeof(bridge_init_unique));
        bridge_offered = bridge_get(in + BRIDGE_INIT_IN_FLAGS) & BRIDGE_INIT_EXT
                             ? bridge_get(in + BRIDGE_INIT_IN_FLAGS2)
                             : 0;
    }
    return got;
}

/* Have libfuse send and receive through us. It must be done after the session is made and before it
 * is mounted, which replaces the descriptor given here; if mounting fails libfuse closes that one.
 * Without splice functions libfuse uses none (do_init). */
static void bridge_intercept(struct fuse_session *se)
{
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 12)
    struct fuse_custom_io io;
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

    memset(&io, 0, sizeof(io));
    io.read = bridge_read;
    io.writev = bridge_writev;
    if (fd >= 0 && fuse_session_custom_io(se, &io, fd) != 0) {
        fuse_log(FUSE_LOG_WARNING, "mailfs: no passthrough: fuse_session_custom_io failed\n");
        close(fd);
    }
#else
    fuse_log(FUSE_LOG_INFO, "mailfs: no passthrough: libfuse was older than 3.12 when we were built\n");
#endif
}

/* The end of every entry point. */
static struct fuse_session *bridge_leave(struct fuse_session *se)
{
    bridge_inside = 0;
    if (se != NULL) {
        bridge_session = se;
        bridge_agreed = 0;
        bridge_init_unique = 0;
        if (bridge_wanted)
            bridge_intercept(se);
        bridge_opened();
    }
    return se;
}

/* The descriptor of the connection; -1 if there is none. */
static int bridge_fd(void)
{
    return bridge_session != NULL ? fuse_session_fd(bridge_session) : -1;
}

/* libfuse 3.0 and later (FUSE_3.0 in lib/fuse_versionscript). */
INTERPOSED fuse_session_new(struct fuse_args *args, const struct fuse_lowlevel_ops *op,
                            size_t op_size, void *userdata)
{
    struct fuse_session *(*real)(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t,
                                 void *) = bridge_next("fuse_session_new", "FUSE_3.0");

    if (real == NULL)
        return NULL;
    if (bridge_inside || bridge_take == NULL || op == NULL)
        return real(args, op, op_size, userdata);
    bridge_inside = 1;
    return bridge_leave(real(args, bridge_take(op, op_size), sizeof(*op), userdata));
}

/* What a pyfuse3 built with the headers of libfuse 3.17 or later calls (FUSE_3.17, likewise). */
INTERPOSED fuse_session_new_versioned(struct fuse_args *args, const struct fuse_lowlevel_ops *op,
                                      size_t op_size, void *version, void *userdata)
{
    struct fuse_session *(*real)(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t,
                                 void *, void *) =
        bridge_next("fuse_session_new_versioned", "FUSE_3.17");

    if (real == NULL)
        return NULL;
    if (bridge_inside || bridge_take == NULL || op == NULL)
        return real(args, op, op_size, version, userdata);
    bridge_inside = 1;
    return bridge_leave(real(args, bridge_take(op, op_size), sizeof(*op), version, userdata));
}

/* The replies to OPEN, OPENDIR and CREATE. libfuse writes them before it returns
 * (fuse_send_msg, lib/fuse_lowlevel.c), so bridge_writev sees what is noted here. */
EXPORTED int fuse_reply_open(fuse_req_t req, const struct fuse_file_info *fi)
{
    static int (*real)(fuse_req_t, const struct fuse_file_info *);
    int result;

    if (real == NULL)
        real = bridge_next("fuse_reply_open", "FUSE_3.0");
    bridge_backing = bridge_agreed ? bridge_backing_of(fi->fh) : 0;
    result = real(req, fi);
    bridge_backing = 0;
    return result;
}

EXPORTED int fuse_reply_create(fuse_req_t req, const struct fuse_entry_param *entry,
                               const struct fuse_file_info *fi)
{
    static int (*real)(fuse_req_t, const struct fuse_entry_param *,
                       const struct fuse_file_info *);
    int result;

    if (real == NULL)
        real = bridge_next("fuse_reply_create", "FUSE_3.0");
    bridge_backing = bridge_agreed ? bridge_backing_of(fi->fh) : 0;
    result = real(req, entry, fi);
    bridge_backing = 0;
    return result;
}

#endif
