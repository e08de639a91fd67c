/*
 * The plain C stream that the tcp channel's bandwidth is measured against, shaped as ours: windows
 * of messages one way, one byte back after each window.
 *
 *     cc -O2 -shared -fPIC -o tcp_stream.so tcp_stream.c
 *
 * As tcp_pingpong.c otherwise; blocking calls only, as `iperf3 -l` makes them.
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

/* `count` windows of `window` messages from the same nbytes; stamps of each window. */
int reference_send(int fd, const char *data, uint64_t nbytes, uint64_t window, uint64_t count,
                   int64_t *start, int64_t *end)
{
    char ack;
    for (uint64_t i = 0; i < count; i++) {
        start[i] = now_ns();
        for (uint64_t left = nbytes * window; left > 0;) {
            uint64_t at = left % nbytes ? nbytes - left % nbytes : 0;
            ssize_t n = send(fd, data + at, nbytes - at, MSG_NOSIGNAL);
            if (n < 0 && !again())
                return -errno;
            left -= n > 0 ? (uint64_t)n : 0;
        }
        ssize_t n;
        while ((n = recv(fd, &ack, 1, 0)) < 0)
            if (!again())
                return -errno;
        if (n == 0)
            return -ECONNRESET;
        end[i] = now_ns();
    }
    return 0;
}

int reference_receive(int fd, char *data, uint64_t nbytes, uint64_t window, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        for (uint64_t left = nbytes * window; left > 0;) {
            uint64_t at = left % nbytes ? nbytes - left % nbytes : 0;
            ssize_t n = recv(fd, data + at, nbytes - at, 0);
            if (n == 0)
                return -ECONNRESET;
            if (n < 0 && !again())
                return -errno;
            left -= n > 0 ? (uint64_t)n : 0;
        }
        while (send(fd, "", 1, MSG_NOSIGNAL) < 0)
            if (!again())
                return -errno;
    }
    return 0;
}
