/*
 * The plain C ping-pong that the tcp channel is measured against: nothing but send, receive and
 * two stamps per round trip, over a connected stream socket that somebody else made.
 *
 *     cc -O2 -shared -fPIC -o tcp_pingpong.so tcp_pingpong.c
 *
 * benchmarks/parity.py calls it (ctypes lets go of the GIL) in the same two ranks as our loop, in
 * blocks that alternate with it. spin 0: blocking calls. spin 1: what `sockperf ping-pong
 * --nonblocked` does, the same calls with MSG_DONTWAIT until there is something.
 *
 * Both functions return 0 or -errno; -ECONNRESET when the other end is gone.
 */
#include <errno.h>
#include <stdint.h>
#include <sys/socket.h>
#include <time.h>

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int again(void)
{
    return errno == EWOULDBLOCK || errno == EINTR;
}

static int send_all(int fd, const char *data, uint64_t nbytes, int flags)
{
    while (nbytes > 0) {
        ssize_t n = send(fd, data, nbytes, flags | MSG_NOSIGNAL);
        if (n < 0 && !again())
            return -errno;
        if (n > 0) {
            data += n;
            nbytes -= (uint64_t)n;
        }
    }
    return 0;
}

static int receive_all(int fd, char *data, uint64_t nbytes, int flags)
{
    while (nbytes > 0) {
        ssize_t n = recv(fd, data, nbytes, flags);
        if (n == 0)
            return -ECONNRESET;
        if (n < 0 && !again())
            return -errno;
        if (n > 0) {
            data += n;
            nbytes -= (uint64_t)n;
        }
    }
    return 0;
}

/* Asks: `count` round trips of nbytes each way; start and end take a stamp of each. */
int reference_ping(int fd, char *data, uint64_t nbytes, uint64_t count, int spin, int64_t *start,
                   int64_t *end)
{
    int flags = spin ? MSG_DONTWAIT : 0, rc = 0;
    for (uint64_t i = 0; i < count && rc == 0; i++) {
        start[i] = now_ns();
        rc = send_all(fd, data, nbytes, flags);
        if (rc == 0)
            rc = receive_all(fd, data, nbytes, flags);
        end[i] = now_ns();
    }
    return rc;
}

/* Answers them. */
int reference_pong(int fd, char *data, uint64_t nbytes, uint64_t count, int spin)
{
    int flags = spin ? MSG_DONTWAIT : 0, rc = 0;
    for (uint64_t i = 0; i < count && rc == 0; i++) {
        rc = receive_all(fd, data, nbytes, flags);
        if (rc == 0)
            rc = send_all(fd, data, nbytes, flags);
    }
    return rc;
}
