# The operations, part of _bridge.pyx: note who asks, then call pyfuse3's.
#
# Arguments are those of struct fuse_lowlevel_ops (fuse_lowlevel.h). These functions touch no Python
# object after calling pyfuse3's, which may leave an exception for pyfuse3 to find when
# fuse_session_process_buf returns.

cdef void on_destroy(void *userdata) noexcept:
    """fuse_session_destroy is about to free the session, or FUSE_DESTROY came: replies end here."""
    global generation
    generation += 1
    now.valid = False
    forget_session()
    if theirs.destroy is not NULL:
        theirs.destroy(userdata)

cdef void on_forget(fuse_req_t req, fuse_ino_t ino, uint64_t count) noexcept:
    now.valid = False  # nobody asks: the kernel's cache does
    theirs.forget(req, ino, count)

cdef void on_forget_multi(fuse_req_t req, size_t count, fuse_forget_data *forgets) noexcept:
    now.valid = False
    theirs.forget_multi(req, count, forgets)

cdef void on_lookup(fuse_req_t req, fuse_ino_t parent, const char *name) noexcept:
    note(req, "lookup", parent, NULL, 0)
    theirs.lookup(req, parent, name)

cdef void on_getattr(fuse_req_t req, fuse_ino_t ino, fuse_file_info *fi) noexcept:
    note(req, "getattr", ino, fi, HANDLE)  # fi is NULL unless FUSE_GETATTR_FH was sent
    theirs.getattr(req, ino, fi)

cdef void on_setattr(fuse_req_t req, fuse_ino_t ino, stat *attr, int to_set,
                     fuse_file_info *fi) noexcept:
    # fi is NULL unless FATTR_FH was sent; the owner of FATTR_LOCKOWNER is dropped by do_setattr.
    note(req, "setattr", ino, fi, HANDLE)
    theirs.setattr(req, ino, attr, to_set, fi)

cdef void on_readlink(fuse_req_t req, fuse_ino_t ino) noexcept:
    note(req, "readlink", ino, NULL, 0)
    theirs.readlink(req, ino)

cdef void on_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
                   dev_t rdev) noexcept:
    note(req, "mknod", parent, NULL, 0)
    theirs.mknod(req, parent, name, mode, rdev)

cdef void on_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode) noexcept:
    note(req, "mkdir", parent, NULL, 0)
    theirs.mkdir(req, parent, name, mode)

cdef void on_unlink(fuse_req_t req, fuse_ino_t parent, const char *name) noexcept:
    note(req, "unlink", parent, NULL, 0)
    theirs.unlink(req, parent, name)

cdef void on_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name) noexcept:
    note(req, "rmdir", parent, NULL, 0)
    theirs.rmdir(req, parent, name)

cdef void on_symlink(fuse_req_t req, const char *target, fuse_ino_t parent,
                     const char *name) noexcept:
    note(req, "symlink", parent, NULL, 0)
    theirs.symlink(req, target, parent, name)

cdef void on_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent,
                    const char *newname, unsigned flags) noexcept:
    note(req, "rename", parent, NULL, 0)
    theirs.rename(req, parent, name, newparent, newname, flags)

cdef void on_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent, const char *name) noexcept:
    note(req, "link", ino, NULL, 0)
    theirs.link(req, ino, parent, name)

cdef void on_open(fuse_req_t req, fuse_ino_t ino, fuse_file_info *fi) noexcept:
    note(req, "open", ino, fi, PARKS)
    theirs.open(req, ino, fi)

cdef void on_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
                    fuse_file_info *fi) noexcept:
    note(req, "create", parent, fi, PARKS)
    theirs.create(req, parent, name, mode, fi)

cdef void on_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                  fuse_file_info *fi) noexcept:
    note(req, "read", ino, fi, HANDLE | PARKS)
    theirs.read(req, ino, size, off, fi)

cdef void on_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off,
                   fuse_file_info *fi) noexcept:
    note(req, "write", ino, fi, HANDLE)
    theirs.write(req, ino, buf, size, off, fi)

cdef void on_write_buf(fuse_req_t req, fuse_ino_t ino, fuse_bufvec *buf, off_t off,
                       fuse_file_info *fi) noexcept:
    note(req, "write", ino, fi, HANDLE)
    theirs.write_buf(req, ino, buf, off, fi)

cdef void on_flush(fuse_req_t req, fuse_ino_t ino, fuse_file_info *fi) noexcept:
    note(req, "flush", ino, fi, HANDLE | PARKS)
    theirs.flush(req, ino, fi)

cdef void on_release(fuse_req_t req, fuse_ino_t ino, fuse_file_info *fi) noexcept:
    note(req, "release", ino, fi, HANDLE)
    theirs.release(req, ino, fi)

cdef void on_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, fuse_file_info *fi) noexcept:
    note(req, "fsync", ino, fi, HANDLE)
    theirs.fsync(req, ino, datasync, fi)

cdef void on_opendir(fuse_req_t req, fuse_ino_t ino, fuse_file_info *fi) noexcept:
    note(req, "opendir", ino, fi, 0)
    theirs.opendir(req, ino, fi)

cdef void on_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                     fuse_file_info *fi) noexcept:
    note(req, "readdir", ino, fi, HANDLE)
    theirs.readdir(req, ino, size, off, fi)

cdef void on_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                         fuse_file_info *fi) noexcept:
    note(req, "readdir", ino, fi, HANDLE)
    theirs.readdirplus(req, ino, size, off, fi)

cdef void on_releasedir(fuse_req_t req, fuse_ino_t ino, fuse_file_info *fi) noexcept:
    note(req, "releasedir", ino, fi, HANDLE)
    theirs.releasedir(req, ino, fi)

cdef void on_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, fuse_file_info *fi) noexcept:
    note(req, "fsyncdir", ino, fi, HANDLE)
    theirs.fsyncdir(req, ino, datasync, fi)

cdef void on_statfs(fuse_req_t req, fuse_ino_t ino) noexcept:
    note(req, "statfs", ino, NULL, 0)
    theirs.statfs(req, ino)

cdef void on_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value,
                      size_t size, int flags) noexcept:
    note(req, "setxattr", ino, NULL, 0)
    theirs.setxattr(req, ino, name, value, size, flags)

cdef void on_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size) noexcept:
    note(req, "getxattr", ino, NULL, 0)
    theirs.getxattr(req, ino, name, size)

cdef void on_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size) noexcept:
    note(req, "listxattr", ino, NULL, 0)
    theirs.listxattr(req, ino, size)

cdef void on_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name) noexcept:
    note(req, "removexattr", ino, NULL, 0)
    theirs.removexattr(req, ino, name)

cdef void on_access(fuse_req_t req, fuse_ino_t ino, int mask) noexcept:
    note(req, "access", ino, NULL, 0)
    theirs.access(req, ino, mask)

cdef void on_poll(fuse_req_t req, fuse_ino_t ino, fuse_file_info *fi,
                  fuse_pollhandle *handle) noexcept:
    note(req, "poll", ino, fi, HANDLE)
    theirs.poll(req, ino, fi, handle)

cdef void on_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t length,
                       fuse_file_info *fi) noexcept:
    """So that glibc's posix_fallocate writes instead; without a handler libfuse answers ENOSYS."""
    fuse_reply_err(req, EOPNOTSUPP)


cdef void wrap() noexcept:
    """Fill in ours from theirs; what pyfuse3 does not handle stays unhandled."""
    ours.init = theirs.init
    ours.destroy = on_destroy
    ours.fallocate = on_fallocate
    if theirs.forget is not NULL: ours.forget = on_forget
    if theirs.forget_multi is not NULL: ours.forget_multi = on_forget_multi
    if theirs.lookup is not NULL: ours.lookup = on_lookup
    if theirs.getattr is not NULL: ours.getattr = on_getattr
    if theirs.setattr is not NULL: ours.setattr = on_setattr
    if theirs.readlink is not NULL: ours.readlink = on_readlink
    if theirs.mknod is not NULL: ours.mknod = on_mknod
    if theirs.mkdir is not NULL: ours.mkdir = on_mkdir
    if theirs.unlink is not NULL: ours.unlink = on_unlink
    if theirs.rmdir is not NULL: ours.rmdir = on_rmdir
    if theirs.symlink is not NULL: ours.symlink = on_symlink
    if theirs.rename is not NULL: ours.rename = on_rename
    if theirs.link is not NULL: ours.link = on_link
    if theirs.open is not NULL: ours.open = on_open
    if theirs.create is not NULL: ours.create = on_create
    if theirs.read is not NULL: ours.read = on_read
    if theirs.write is not NULL: ours.write = on_write
    if theirs.write_buf is not NULL: ours.write_buf = on_write_buf
    if theirs.flush is not NULL: ours.flush = on_flush
    if theirs.release is not NULL: ours.release = on_release
    if theirs.fsync is not NULL: ours.fsync = on_fsync
    if theirs.opendir is not NULL: ours.opendir = on_opendir
    if theirs.readdir is not NULL: ours.readdir = on_readdir
    if theirs.readdirplus is not NULL: ours.readdirplus = on_readdirplus
    if theirs.releasedir is not NULL: ours.releasedir = on_releasedir
    if theirs.fsyncdir is not NULL: ours.fsyncdir = on_fsyncdir
    if theirs.statfs is not NULL: ours.statfs = on_statfs
    if theirs.setxattr is not NULL: ours.setxattr = on_setxattr
    if theirs.getxattr is not NULL: ours.getxattr = on_getxattr
    if theirs.listxattr is not NULL: ours.listxattr = on_listxattr
    if theirs.removexattr is not NULL: ours.removexattr = on_removexattr
    if theirs.access is not NULL: ours.access = on_access
    if theirs.poll is not NULL: ours.poll = on_poll
