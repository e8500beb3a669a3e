"""What the bridge uses of libfuse and the C library, as declarations.

Operations are ``noexcept``: an exception that a handler of pyfuse3 leaves behind is for pyfuse3 to
find when fuse_session_process_buf returns, and we must not touch it on the way.
"""

from libc.stdint cimport uint64_t

cdef extern from "<fcntl.h>" nogil:
    enum:
        F_RDLCK
        F_WRLCK
        F_UNLCK
        SEEK_SET
    struct flock:
        short l_type
        short l_whence
        long long l_start
        long long l_len
        int l_pid

cdef extern from "<sys/file.h>" nogil:
    enum:
        LOCK_SH
        LOCK_EX
        LOCK_NB

cdef extern from "<sys/stat.h>" nogil:
    struct stat:
        pass

cdef extern from "_bridge.h":
    ctypedef void *fuse_req_t
    ctypedef uint64_t fuse_ino_t
    ctypedef unsigned int mode_t
    ctypedef unsigned long dev_t
    ctypedef long long off_t

    struct fuse_conn_info:
        pass
    struct fuse_forget_data:
        pass
    struct fuse_bufvec:
        pass
    struct fuse_pollhandle:
        pass
    struct fuse_file_info:
        int flags
        unsigned flush
        unsigned flock_release
        uint64_t fh
        uint64_t lock_owner
    struct fuse_ctx:
        unsigned uid
        unsigned gid
        int pid

    struct fuse_lowlevel_ops:
        void (*init)(void *, fuse_conn_info *) noexcept
        void (*destroy)(void *) noexcept
        void (*lookup)(fuse_req_t, fuse_ino_t, const char *) noexcept
        void (*forget)(fuse_req_t, fuse_ino_t, uint64_t) noexcept
        void (*forget_multi)(fuse_req_t, size_t, fuse_forget_data *) noexcept
        void (*getattr)(fuse_req_t, fuse_ino_t, fuse_file_info *) noexcept
        void (*setattr)(fuse_req_t, fuse_ino_t, stat *, int, fuse_file_info *) noexcept
        void (*readlink)(fuse_req_t, fuse_ino_t) noexcept
        void (*mknod)(fuse_req_t, fuse_ino_t, const char *, mode_t, dev_t) noexcept
        void (*mkdir)(fuse_req_t, fuse_ino_t, const char *, mode_t) noexcept
        void (*unlink)(fuse_req_t, fuse_ino_t, const char *) noexcept
        void (*rmdir)(fuse_req_t, fuse_ino_t, const char *) noexcept
        void (*symlink)(fuse_req_t, const char *, fuse_ino_t, const char *) noexcept
        void (*rename)(fuse_req_t, fuse_ino_t, const char *, fuse_ino_t, const char *,
                       unsigned) noexcept
        void (*link)(fuse_req_t, fuse_ino_t, fuse_ino_t, const char *) noexcept
        void (*open)(fuse_req_t, fuse_ino_t, fuse_file_info *) noexcept
        void (*create)(fuse_req_t, fuse_ino_t, const char *, mode_t, fuse_file_info *) noexcept
        void (*read)(fuse_req_t, fuse_ino_t, size_t, off_t, fuse_file_info *) noexcept
        void (*write)(fuse_req_t, fuse_ino_t, const char *, size_t, off_t,
                      fuse_file_info *) noexcept
        void (*write_buf)(fuse_req_t, fuse_ino_t, fuse_bufvec *, off_t, fuse_file_info *) noexcept
        void (*flush)(fuse_req_t, fuse_ino_t, fuse_file_info *) noexcept
        void (*release)(fuse_req_t, fuse_ino_t, fuse_file_info *) noexcept
        void (*fsync)(fuse_req_t, fuse_ino_t, int, fuse_file_info *) noexcept
        void (*opendir)(fuse_req_t, fuse_ino_t, fuse_file_info *) noexcept
        void (*readdir)(fuse_req_t, fuse_ino_t, size_t, off_t, fuse_file_info *) noexcept
        void (*readdirplus)(fuse_req_t, fuse_ino_t, size_t, off_t, fuse_file_info *) noexcept
        void (*releasedir)(fuse_req_t, fuse_ino_t, fuse_file_info *) noexcept
        void (*fsyncdir)(fuse_req_t, fuse_ino_t, int, fuse_file_info *) noexcept
        void (*statfs)(fuse_req_t, fuse_ino_t) noexcept
        void (*setxattr)(fuse_req_t, fuse_ino_t, const char *, const char *, size_t, int) noexcept
        void (*getxattr)(fuse_req_t, fuse_ino_t, const char *, size_t) noexcept
        void (*listxattr)(fuse_req_t, fuse_ino_t, size_t) noexcept
        void (*removexattr)(fuse_req_t, fuse_ino_t, const char *) noexcept
        void (*access)(fuse_req_t, fuse_ino_t, int) noexcept
        void (*poll)(fuse_req_t, fuse_ino_t, fuse_file_info *, fuse_pollhandle *) noexcept
        void (*getlk)(fuse_req_t, fuse_ino_t, fuse_file_info *, flock *) noexcept
        void (*setlk)(fuse_req_t, fuse_ino_t, fuse_file_info *, flock *, int) noexcept
        void (*flock)(fuse_req_t, fuse_ino_t, fuse_file_info *, int) noexcept
        void (*fallocate)(fuse_req_t, fuse_ino_t, int, off_t, off_t, fuse_file_info *) noexcept

    const fuse_ctx *fuse_req_ctx(fuse_req_t)
    int fuse_reply_err(fuse_req_t, int) noexcept
    int fuse_reply_lock(fuse_req_t, const flock *) noexcept
    int fuse_req_interrupted(fuse_req_t) noexcept
    void fuse_req_interrupt_func(fuse_req_t, void (*)(fuse_req_t, void *) noexcept, void *) noexcept

    const fuse_lowlevel_ops *(*bridge_take)(const fuse_lowlevel_ops *, size_t) noexcept
    void (*bridge_opened)() noexcept
    int (*bridge_backing_of)(uint64_t) noexcept
    int bridge_wanted
    int bridge_agreed
    void *bridge_session
    int bridge_fd() noexcept
