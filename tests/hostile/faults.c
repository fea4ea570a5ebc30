/* Makes one call of the C library fail, for LD_PRELOAD: a disk that is full or broken, memory that
 * is short. Nothing fails before `fault_arm`; then the call of number `countdown` of a kind does.
 * Reads and writes count on regular files alone: pipes and terminals are not what breaks here.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { NOTHING, WRITES, READS, MEMORY };
static int kind, error;
static long countdown, fired;
static size_t least = 1u << 12; /* smaller blocks are Python's own objects, and everywhere */

void fault_arm(int what, long number, int code) {
    countdown = number, error = code, fired = 0;
    kind = what;
}

long fault_disarm(void) {
    kind = NOTHING;
    return fired;
}

static int due(int what) {
    if (kind != what || __atomic_sub_fetch(&countdown, 1, __ATOMIC_SEQ_CST)) return 0;
    fired = 1;
    errno = error;
    return 1;
}

static int is_file(int descriptor) {
    struct stat found;
    return kind != NOTHING && fstat(descriptor, &found) == 0 && S_ISREG(found.st_mode);
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *bytes, size_t count) {
    REAL(write);
    return is_file(fd) && due(WRITES) ? -1 : real(fd, bytes, count);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset) {
    REAL(pwrite64);
    return is_file(fd) && due(WRITES) ? -1 : real(fd, bytes, count, offset);
}

int fsync(int fd) {
    REAL(fsync);
    return is_file(fd) && due(WRITES) ? -1 : real(fd);
}

int ftruncate64(int fd, off64_t size) {
    REAL(ftruncate64);
    return is_file(fd) && due(WRITES) ? -1 : real(fd, size);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    return kind != NOTHING && due(WRITES) ? -1 : real(from, to);
}

ssize_t read(int fd, void *bytes, size_t count) {
    REAL(read);
    return is_file(fd) && due(READS) ? -1 : real(fd, bytes, count);
}

ssize_t pread64(int fd, void *bytes, size_t count, off64_t offset) {
    REAL(pread64);
    return is_file(fd) && due(READS) ? -1 : real(fd, bytes, count, offset);
}

void *malloc(size_t size) {
    REAL(malloc);
    return size >= least && due(MEMORY) ? NULL : real(size);
}

void *realloc(void *block, size_t size) {
    REAL(realloc);
    return size >= least && due(MEMORY) ? NULL : real(block, size);
}
