/*
 * Faults in the disk under a daemon, at a system call that is chosen by its number.
 *
 * Preloaded (ld.so(8), LD_PRELOAD) into a process whose environment names a control file in MAILFS_TEST_FAULTS. Every
 * call that changes a file or directory of one device, through a descriptor of it, is counted while the control file
 * says so, and the one whose turn it is goes wrong. Calls by absolute names and on stdin, stdout and stderr, the log,
 * are none of ours: the daemon reaches its spool by descriptors only.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum { COUNT, KILL, TEAR, FAIL, BROKEN, SHORT };
enum { NAMES = 4096, NAME = 16 };

struct control { /* tests/support/injection.py has the same */
    _Atomic uint32_t armed;
    uint32_t action;
    uint32_t at;
    int32_t error;
    uint64_t device;
    _Atomic uint32_t count;
    _Atomic uint32_t hits;
    char names[NAMES][NAME];
};

static struct control *control;

static struct control *attached(void)
{
    const char *path;
    if (!control && (path = getenv("MAILFS_TEST_FAULTS"))) {
        int fd = open(path, O_RDWR | O_CLOEXEC);
        if (fd >= 0) {
            void *map = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            close(fd);
            if (map != MAP_FAILED)
                control = map;
        }
    }
    return control;
}

_Noreturn static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

/* What is to become of a call: -1 it fails with errno set; 0 nothing; 1 half of it is done; 2 the same, and then the end. */
static int verdict(int fd, const char *name)
{
    struct control *c = attached();
    struct stat found;
    int saved = errno;

    if (!c || !c->armed || fd < 0)
        return 0;
    if (fstat(fd, &found) != 0 || found.st_dev != c->device || !(S_ISREG(found.st_mode) || S_ISDIR(found.st_mode))) {
        errno = saved;
        return 0;
    }
    errno = saved;
    uint32_t number = ++c->count;
    if (number <= NAMES)
        strncpy(c->names[number - 1], name, NAME - 1);
    if (c->action == COUNT || (c->action == BROKEN ? number < c->at : number != c->at))
        return 0;
    ++c->hits;
    switch (c->action) {
    case KILL:
        die();
    case TEAR:
        return 2;
    case SHORT:
        return 1;
    default:
        errno = c->error;
        return -1;
    }
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Calls that are done wholly or not at all. */
#define WHOLE(fd, name, call)                \
    do {                                     \
        int what = verdict(fd, name);        \
        if (what < 0)                        \
            return -1;                       \
        int done = call;                     \
        if (what == 2)                       \
            die();                           \
        return done;                         \
    } while (0)

#define WRITES(name, parameters, arguments, ...)                                    \
    ssize_t name parameters                                                         \
    {                                                                               \
        int what = fd > 2 ? verdict(fd, #name) : 0;                                 \
        if (what < 0)                                                               \
            return -1;                                                              \
        if (what && size > 1)                                                       \
            size /= 2;                                                              \
        ssize_t done = REAL(name) arguments;                                        \
        if (what == 2)                                                              \
            die();                                                                  \
        return done;                                                                \
    }

WRITES(write, (int fd, const void *data, size_t size), (fd, data, size))
WRITES(pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
WRITES(pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))

int ftruncate(int fd, off_t size) { WHOLE(fd, "ftruncate", REAL(ftruncate)(fd, size)); }
int ftruncate64(int fd, off64_t size) { WHOLE(fd, "ftruncate", REAL(ftruncate64)(fd, size)); }
int fallocate(int fd, int mode, off_t at, off_t size) { WHOLE(fd, "fallocate", REAL(fallocate)(fd, mode, at, size)); }
int fsync(int fd) { WHOLE(fd, "fsync", REAL(fsync)(fd)); }
int fdatasync(int fd) { WHOLE(fd, "fdatasync", REAL(fdatasync)(fd)); }
int fchown(int fd, uid_t uid, gid_t gid) { WHOLE(fd, "fchown", REAL(fchown)(fd, uid, gid)); }
int fchmod(int fd, mode_t mode) { WHOLE(fd, "fchmod", REAL(fchmod)(fd, mode)); }
int futimens(int fd, const struct timespec times[2]) { WHOLE(fd, "utimensat", REAL(futimens)(fd, times)); }

int utimensat(int fd, const char *name, const struct timespec times[2], int flags)
{
    WHOLE(fd, "utimensat", REAL(utimensat)(fd, name, times, flags));
}

int fchownat(int fd, const char *name, uid_t uid, gid_t gid, int flags)
{
    WHOLE(fd, "fchownat", REAL(fchownat)(fd, name, uid, gid, flags));
}

int linkat(int from, const char *old, int to, const char *new, int flags)
{
    WHOLE(to, "linkat", REAL(linkat)(from, old, to, new, flags));
}

int renameat(int from, const char *old, int to, const char *new)
{
    WHOLE(to, "renameat", REAL(renameat)(from, old, to, new));
}

int renameat2(int from, const char *old, int to, const char *new, unsigned flags)
{
    WHOLE(to, "renameat2", REAL(renameat2)(from, old, to, new, flags));
}

int unlinkat(int fd, const char *name, int flags) { WHOLE(fd, "unlinkat", REAL(unlinkat)(fd, name, flags)); }
int mkdirat(int fd, const char *name, mode_t mode) { WHOLE(fd, "mkdirat", REAL(mkdirat)(fd, name, mode)); }

/* A mode is set through /proc/self/fd, as a symbolic link has none. */
int chmod(const char *name, mode_t mode)
{
    int fd = -1;
    sscanf(name, "/proc/self/fd/%d", &fd);
    WHOLE(fd, "chmod", REAL(chmod)(name, mode));
}

#define OPENS(function)                                                             \
    int function(int fd, const char *name, int flags, ...)                          \
    {                                                                               \
        va_list more;                                                               \
        va_start(more, flags);                                                      \
        mode_t mode = va_arg(more, mode_t);                                         \
        va_end(more);                                                               \
        if (!(flags & (O_CREAT | O_TRUNC)))                                         \
            return REAL(function)(fd, name, flags, mode);                           \
        WHOLE(fd, "openat", REAL(function)(fd, name, flags, mode));                 \
    }

OPENS(openat)
OPENS(openat64)
