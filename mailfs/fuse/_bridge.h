/* The symbols that pyfuse3's call of fuse_session_new binds to, in place of libfuse's.
 *
 * This is C and not Cython because newer libfuse makes fuse_session_new a macro (fuse_lowlevel.h
 * since 3.17). Nothing here touches Python: that is for the two functions set by _bridge.pyx.
 */
#ifndef MAILFS_BRIDGE_H
#define MAILFS_BRIDGE_H

#define FUSE_USE_VERSION 32
#include <dlfcn.h>
/* libfuse does not agree with itself about the type (3.18 has version, later const version). */
#define fuse_session_new_versioned declared_by_libfuse
#include <fuse_lowlevel.h>
#undef fuse_session_new_versioned
#undef fuse_session_new

#define INTERPOSED __attribute__((visibility("default"))) struct fuse_session *

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

/* The end of every entry point. Passthrough (the completing of INIT, OPEN and CREATE) belongs here:
 * fuse_session_custom_io must be called after the session is made and before it is mounted. */
static struct fuse_session *bridge_leave(struct fuse_session *se)
{
    bridge_inside = 0;
    if (se != NULL)
        bridge_opened();
    return se;
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

#endif
