/* Fails the n-th operation on files under one folder, whichever library asks for it: preload it (LD_PRELOAD), then call
   fail_nth_arm(n, errno, folder) and, afterwards, fail_nth_disarm(). A failing write leaves half of its bytes behind, as
   a full disk does. Counted: creating files, writing, flushing to the device, renaming, making folders. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static long fail_at, done;
static int armed, error_number;

void fail_nth_arm(long n, int error, const char *path) {
    strncpy(folder, path, sizeof folder - 1);
    fail_at = n, error_number = error, done = 0, armed = 1;
}

/* How many operations there were since fail_nth_arm. */
long fail_nth_disarm(void) { armed = 0; return done; }

static int strikes(int inside) {
    if (!armed || !inside || __sync_add_and_fetch(&done, 1) != fail_at) return 0;
    errno = error_number;
    return 1;
}

static int path_inside(const char *path) { return armed && path && !strncmp(path, folder, strlen(folder)); }

static int fd_inside(int fd) {
    char link[64], path[PATH_MAX];
    if (!armed) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return path_inside(path);
}

#define REAL(name) __typeof__(name) *real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *data, size_t n) {
    REAL(write);
    if (strikes(fd_inside(fd))) { real(fd, data, n / 2); errno = error_number; return -1; }
    return real(fd, data, n);
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
    REAL(pwrite);
    return strikes(fd_inside(fd)) ? -1 : real(fd, data, n, at);
}

ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
    REAL(pwrite64);
    return strikes(fd_inside(fd)) ? -1 : real(fd, data, n, at);
}

ssize_t writev(int fd, const struct iovec *parts, int n) {
    REAL(writev);
    return strikes(fd_inside(fd)) ? -1 : real(fd, parts, n);
}

size_t fwrite(const void *data, size_t size, size_t n, FILE *file) {
    REAL(fwrite);
    return strikes(fd_inside(fileno(file))) ? 0 : real(data, size, n, file);
}

int fsync(int fd) { REAL(fsync); return strikes(fd_inside(fd)) ? -1 : real(fd); }
int fdatasync(int fd) { REAL(fdatasync); return strikes(fd_inside(fd)) ? -1 : real(fd); }
int rename(const char *from, const char *to) { REAL(rename); return strikes(path_inside(from)) ? -1 : real(from, to); }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); return strikes(path_inside(path)) ? -1 : real(path, mode); }

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }

int open(const char *path, int flags, ...) {
    REAL(open);
    MODE(flags)
    return strikes(flags & O_CREAT && path_inside(path)) ? -1 : real(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    REAL(open64);
    MODE(flags)
    return strikes(flags & O_CREAT && path_inside(path)) ? -1 : real(path, flags, mode);
}

int openat(int at, const char *path, int flags, ...) {
    REAL(openat);
    MODE(flags)
    return strikes(flags & O_CREAT && path_inside(path)) ? -1 : real(at, path, flags, mode);
}

FILE *fopen(const char *path, const char *mode) {
    REAL(fopen);
    return strikes(mode[0] != 'r' && path_inside(path)) ? NULL : real(path, mode);
}

FILE *fopen64(const char *path, const char *mode) {
    REAL(fopen64);
    return strikes(mode[0] != 'r' && path_inside(path)) ? NULL : real(path, mode);
}
