/*
 * The plain C parameter server that the ps benchmark is measured against: one server, several
 * workers, each worker a ping-pong on a connection of its own. Nothing but epoll, send, receive and
 * two stamps per call.
 *
 *     cc -O2 -shared -fPIC -o tcp_ps.so tcp_ps.c
 *
 * benchmarks/parity.py calls it in the same ranks as our loop, in blocks that alternate with it.
 * spin 1: nobody sleeps, as `sockperf ping-pong --nonblocked`: the same calls, again and again.
 * A worker is reference_ping of tcp_pingpong.c.
 *
 * Returns 0 or -errno; -ECONNRESET when a worker is gone.
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST_EVENTS = 64 };

struct worker {
    int fd;
    uint64_t got; /* bytes of the request that is coming in */
    char *data;
};

static int again(void)
{
    return errno == EAGAIN || errno == EINTR;
}

static int send_all(int fd, const char *data, uint64_t nbytes)
{
    while (nbytes > 0) {
        ssize_t n = send(fd, data, nbytes, MSG_NOSIGNAL);
        if (n < 0 && !again())
            return -errno;
        if (n > 0) {
            data += n;
            nbytes -= (uint64_t)n;
        }
    }
    return 0;
}

/* What has come of this worker's request; echoes it once it is whole and counts it. */
static int serve_one(struct worker *from, uint64_t nbytes, uint64_t *left)
{
    ssize_t n = recv(from->fd, from->data + from->got, nbytes - from->got, MSG_DONTWAIT);
    if (n < 0)
        return again() ? 0 : -errno;
    if (n == 0)
        return -ECONNRESET;
    from->got += (uint64_t)n;
    if (from->got < nbytes)
        return 0;
    from->got = 0;
    --*left;
    return send_all(from->fd, from->data, nbytes);
}

static int serve_spinning(struct worker *workers, int n, uint64_t nbytes, uint64_t left)
{
    int rc = 0;
    while (left > 0 && rc == 0)
        for (int i = 0; i < n && rc == 0; i++)
            rc = serve_one(&workers[i], nbytes, &left);
    return rc;
}

static int serve_sleeping(int set, uint64_t nbytes, uint64_t left)
{
    struct epoll_event events[MOST_EVENTS];
    int rc = 0;
    while (left > 0 && rc == 0) {
        int n = epoll_wait(set, events, MOST_EVENTS, -1);
        if (n < 0 && errno != EINTR)
            return -errno;
        for (int i = 0; i < n && rc == 0; i++)
            rc = serve_one(events[i].data.ptr, nbytes, &left);
    }
    return rc;
}

static int watch(int set, struct worker *workers, int n)
{
    for (int i = 0; i < n; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &workers[i]};
        if (epoll_ctl(set, EPOLL_CTL_ADD, workers[i].fd, &event))
            return -errno;
    }
    return 0;
}

/* Answers `count` requests of nbytes in all, from n connections; data[i]: where those of the i-th
 * land and go out from again. */
int reference_serve(const int *fds, char **data, int n, uint64_t nbytes, uint64_t count, int spin)
{
    struct worker *workers = calloc((size_t)n, sizeof *workers);
    if (workers == NULL)
        return -ENOMEM;
    for (int i = 0; i < n; i++)
        workers[i] = (struct worker){.fd = fds[i], .data = data[i]};
    int rc, set = -1;
    if (spin) {
        rc = serve_spinning(workers, n, nbytes, count);
    } else {
        set = epoll_create1(EPOLL_CLOEXEC);
        rc = set < 0 ? -errno : watch(set, workers, n);
        if (rc == 0)
            rc = serve_sleeping(set, nbytes, count);
    }
    if (set >= 0)
        close(set);
    free(workers);
    return rc;
}
