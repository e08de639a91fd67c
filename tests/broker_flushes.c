/*
 * LD_PRELOAD: writes down each fdatasync() when it has returned and each send() and sendmsg() before it
 * begins, in one order over all threads, for tests/broker_flushes.py.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define MOST 65536u
#define HEAD 64u

typedef struct event {
    int32_t fd;
    uint32_t flush;             /* an fdatasync; else a send */
    uint32_t nbytes;            /* of `head` */
    uint8_t head[HEAD];         /* how the message begins, or the file's path ends */
} event;

event flushes_events[MOST];
uint32_t flushes_count;

static event *next_event(int fd)
{
    static event beyond;
    uint32_t at = __atomic_fetch_add(&flushes_count, 1, __ATOMIC_SEQ_CST);
    event *e = at < MOST ? &flushes_events[at] : &beyond;
    e->fd = fd;
    return e;
}

static void copy(event *e, const void *from, size_t nbytes)
{
    size_t room = HEAD - e->nbytes;
    nbytes = nbytes < room ? nbytes : room;
    memcpy(e->head + e->nbytes, from, nbytes);
    e->nbytes += (uint32_t)nbytes;
}

int fdatasync(int fd)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path);
    int rc = real(fd);
    if (rc == 0 && n > 0) {
        event *e = next_event(fd);
        e->flush = 1;
        size_t from = (size_t)n > HEAD ? (size_t)n - HEAD : 0;
        copy(e, path + from, (size_t)n - from);
    }
    return rc;
}

ssize_t send(int fd, const void *from, size_t nbytes, int flags)
{
    ssize_t (*real)(int, const void *, size_t, int) =
        (ssize_t (*)(int, const void *, size_t, int))dlsym(RTLD_NEXT, "send");
    copy(next_event(fd), from, nbytes);
    return real(fd, from, nbytes, flags);
}

ssize_t sendmsg(int fd, const struct msghdr *m, int flags)
{
    ssize_t (*real)(int, const struct msghdr *, int) =
        (ssize_t (*)(int, const struct msghdr *, int))dlsym(RTLD_NEXT, "sendmsg");
    event *e = next_event(fd);
    for (size_t i = 0; i < m->msg_iovlen; i++)
        copy(e, m->msg_iov[i].iov_base, m->msg_iov[i].iov_len);
    return real(fd, m, flags);
}
