/*
 * Messages on a byte stream: a header of 16 bytes, little endian, then the payload. Python's half
 * is in commbench/channels/wire.py. Nothing here waits by itself, allocates per message or knows
 * what a message means; native/tcp.c does.
 *
 * All of it is in this header so that the verbs of the engine become one function each: processors
 * mispredict the returns that follow a system call, and ten of them are 3 % of a round trip.
 */
#ifndef COMMBENCH_TCP_WIRE_H
#define COMMBENCH_TCP_WIRE_H

#include <endian.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "commbench_ops.h"

#define WIRE_SLOW __attribute__((noinline, cold))

#define WIRE_IOV_MAX 1024       /* what one sendmsg() or recvmsg() takes */
#define WIRE_STAGE (64 * 1024)
#define WIRE_SMALL 4096         /* up to here a copy costs less than another call */
#define WIRE_LARGE (256 * 1024) /* from here on it is faster to read the header alone, and payload
                                   as it comes: 10 % of loopback's bandwidth at 1 MiB */
#define WIRE_FLAT 2048          /* up to here it costs less than what sendmsg() pays for iovecs: 200 ns
                                   of the 3.6 us of one with two */

/* "cb1" and what the message is, so that a stream out of step shows at once. */
enum { WIRE_REQUEST = 0x63623101, WIRE_ONE_WAY = 0x63623102, WIRE_REPLY = 0x63623103 };

typedef struct wire_header {
    uint64_t nbytes;            /* of the payload */
    uint32_t slot;              /* the asker's; a reply brings it back */
    uint32_t kind;
} wire_header;

/* A place in a message: at byte `at` of *iov, `left` bytes before its end. */
typedef struct wire_cursor {
    const struct iovec *iov;
    size_t at;
    uint64_t left;
} wire_cursor;

/* Where a message goes, once its header is known; NULL: it is refused. */
typedef const cb_iov *(*wire_place)(void *ctx, const wire_header *h);

typedef struct wire_in {
    char *stage;                /* bytes read ahead: head .. tail; cap 0 until wire_in_init() */
    size_t cap, head, tail;
    wire_header h;              /* of the last message; `got` bytes of the next one's are here */
    size_t got;
    wire_cursor to;             /* where the rest of a message goes whose header is complete */
    bool careful;               /* a message was not the expected one: read headers alone */
    bool closed;                /* the peer ended the stream */
    uint64_t copied;            /* payload bytes, in all */
    struct iovec iov[WIRE_IOV_MAX];
} wire_in;

/* Bytes read ahead that nobody took. */
static inline bool wire_staged(const wire_in *in)
{
    return in->tail > in->head;
}

/* In the middle of a message, or ahead of it. */
static inline bool wire_busy(const wire_in *in)
{
    return in->got > 0 || wire_staged(in);
}

static inline int wire_in_init(wire_in *in)
{
    in->head = in->tail = in->got = 0;
    in->careful = false;
    if (in->cap)
        return 0;
    in->stage = malloc(WIRE_STAGE);
    in->cap = in->stage ? WIRE_STAGE : 0;
    return in->stage ? 0 : -ENOMEM;
}

static inline void wire_in_free(wire_in *in)
{
    free(in->stage);
    in->stage = NULL;
    in->cap = 0;
}

/* ------------------------------------------------------------------ a place in a message */

/* The memory at the cursor, at most n bytes of it; the cursor moves behind it. */
static inline struct iovec wire_step(wire_cursor *c, uint64_t n)
{
    size_t part = c->iov->iov_len - c->at;
    struct iovec here = {(char *)c->iov->iov_base + c->at, 0};
    if (part > n) {
        c->at += n;
        part = n;
    } else {
        c->iov++;
        c->at = 0;
    }
    c->left -= part;
    here.iov_len = part;
    return here;
}

static inline void wire_skip(wire_cursor *c, uint64_t n)
{
    while (n > 0)
        n -= wire_step(c, n).iov_len;
}

static inline wire_cursor wire_at(const cb_iov *message, uint64_t from, uint64_t to)
{
    wire_cursor c = {message->iov, 0, to};
    wire_skip(&c, from);
    return c;
}

static inline void wire_scatter(wire_cursor *c, const char *data, uint64_t n)
{
    while (n > 0) {
        struct iovec here = wire_step(c, n);
        if (here.iov_len)
            memcpy(here.iov_base, data, here.iov_len);
        data += here.iov_len;
        n -= here.iov_len;
    }
}

/* Slots may alias: the memory of both cursors may be the same. */
static inline void wire_move(wire_cursor *to, wire_cursor from, uint64_t n)
{
    while (n > 0) {
        struct iovec source = wire_step(&from, n);
        n -= source.iov_len;
        while (source.iov_len > 0) {
            struct iovec here = wire_step(to, source.iov_len);
            if (here.iov_len)
                memmove(here.iov_base, source.iov_base, here.iov_len);
            source.iov_base = (char *)source.iov_base + here.iov_len;
            source.iov_len -= here.iov_len;
        }
    }
}

static inline uint32_t wire_list(wire_cursor c, struct iovec *iov, uint32_t max, uint64_t *nbytes)
{
    uint32_t n = 0;
    while (c.left > 0 && n < max) {
        iov[n] = wire_step(&c, c.left);
        *nbytes += iov[n].iov_len;
        n += iov[n].iov_len > 0;
    }
    return n;
}

/* ------------------------------------------------------------------ out */

static inline wire_header wire_pack(uint64_t nbytes, uint32_t slot, uint32_t kind)
{
    return (wire_header){htole64(nbytes), htole32(slot), htole32(kind)};
}

/* What is left of a message from byte `sent` on (header included) as at most `max` iovecs; `le`
 * is the header as made by wire_pack(). Returns how many, and adds their bytes to *nbytes. */
static inline uint32_t wire_gather(const wire_header *le, const cb_iov *message, uint64_t sent,
                                   struct iovec *iov, uint32_t max, uint64_t *nbytes)
{
    uint32_t n = 0;
    if (sent < sizeof *le) {
        iov[n++] = (struct iovec){(char *)le + sent, sizeof *le - sent};
        *nbytes += sizeof *le - sent;
        sent = sizeof *le;
    }
    wire_cursor c = wire_at(message, sent - sizeof *le, message->nbytes);
    return n + wire_list(c, iov + n, max - n, nbytes);
}

/* A message so small that wire_send_flat(), send() of a copy, costs less than sendmsg(). */
static inline bool wire_flat(const cb_iov *message)
{
    return message->nbytes <= WIRE_FLAT;
}

static inline ssize_t wire_send_flat(int fd, const wire_header *le, const cb_iov *message,
                                     int flags)
{
    char flat[sizeof *le + WIRE_FLAT], *end = flat + sizeof *le;
    memcpy(flat, le, sizeof *le);
    for (uint32_t i = 0; i < message->n; end += message->iov[i++].iov_len)
        if (message->iov[i].iov_len)
            memcpy(end, message->iov[i].iov_base, message->iov[i].iov_len);
    return send(fd, flat, sizeof *le + message->nbytes, flags);
}

/* ------------------------------------------------------------------ in */

/* The header is complete: where does its message go? */
static inline int wire_begin(wire_in *in, wire_place place, void *ctx)
{
    in->h = (wire_header){le64toh(in->h.nbytes), le32toh(in->h.slot), le32toh(in->h.kind)};
    const cb_iov *target = place(ctx, &in->h);
    if (!target)
        return -EPROTO;
    in->to = wire_at(target, 0, in->h.nbytes);
    return 0;
}

static inline int wire_ended(wire_in *in)
{
    if (in->got < sizeof in->h || in->to.left > 0)
        return 0;
    in->got = 0;
    return 1;
}

/* All of a message is staged, as it is with most small ones: 1; 0: not so; -EPROTO: refused. */
static inline int wire_take_whole(wire_in *in, wire_place place, void *ctx)
{
    wire_header le;
    uint64_t have = in->tail - in->head;
    if (have < sizeof le)
        return 0;
    memcpy(&le, in->stage + in->head, sizeof le);
    uint64_t nbytes = le64toh(le.nbytes);
    if (nbytes > have - sizeof le)
        return 0;
    in->h = (wire_header){nbytes, le32toh(le.slot), le32toh(le.kind)};
    const cb_iov *target = place(ctx, &in->h);
    if (!target)
        return -EPROTO;
    const char *payload = in->stage + in->head + sizeof le;
    in->copied += nbytes;
    if (nbytes > 0 && target->iov[0].iov_len >= nbytes) {
        memcpy(target->iov[0].iov_base, payload, nbytes);
    } else {
        wire_cursor to = wire_at(target, 0, nbytes);
        wire_scatter(&to, payload, nbytes);
    }
    in->head += sizeof le + nbytes;
    return 1;
}

/* Goes on with what was read ahead. 1: a message is complete, its header is in->h; 0: more bytes
 * are needed; -EPROTO: refused. */
static inline int wire_take(wire_in *in, wire_place place, void *ctx)
{
    if (in->got == 0) {
        int rc = wire_take_whole(in, place, ctx);
        if (rc != 0)
            return rc;
    }
    if (in->got < sizeof in->h) {
        size_t part = sizeof in->h - in->got, have = in->tail - in->head;
        part = part < have ? part : have;
        memcpy((char *)&in->h + in->got, in->stage + in->head, part);
        in->head += part;
        in->got += part;
        if (in->got < sizeof in->h)
            return 0;
        int rc = wire_begin(in, place, ctx);
        if (rc < 0)
            return rc;
    }
    uint64_t have = in->tail - in->head, part = in->to.left < have ? in->to.left : have;
    wire_scatter(&in->to, in->stage + in->head, part);
    in->copied += part;
    in->head += part;
    return wire_ended(in);
}

/* -EAGAIN also for a signal: the caller looks at its stop flag and comes back. */
static inline int wire_check(wire_in *in, ssize_t r)
{
    if (r > 0)
        return 0;
    in->closed = r == 0;
    if (r == 0)
        return -ECONNRESET;
    return errno == EINTR || errno == EWOULDBLOCK ? -EAGAIN : -errno;
}

static inline int wire_read_ahead(wire_in *in, int fd, int flags, wire_place place, void *ctx)
{
    ssize_t r = recv(fd, in->stage, in->cap, flags);
    int rc = wire_check(in, r);
    if (rc < 0)
        return rc;
    in->head = 0;
    in->tail = (size_t)r;
    return wire_take(in, place, ctx);
}

static inline int wire_read_header(wire_in *in, int fd, int flags, wire_place place, void *ctx)
{
    ssize_t r = recv(fd, (char *)&in->h + in->got, sizeof in->h - in->got, flags);
    int rc = wire_check(in, r);
    if (rc < 0)
        return rc;
    in->got += (size_t)r;
    if (in->got == sizeof in->h && (rc = wire_begin(in, place, ctx)) < 0)
        return rc;
    return wire_ended(in);
}

/* How much is left is known, so a blocking call may wait for all of it. */
static inline int wire_read_payload(wire_in *in, int fd, int flags)
{
    uint64_t nbytes = 0;
    bool all = !(flags & MSG_DONTWAIT) && in->to.left <= WIRE_LARGE;
    struct msghdr m = {.msg_iov = in->iov};
    m.msg_iovlen = wire_list(in->to, in->iov, WIRE_IOV_MAX, &nbytes);
    ssize_t r = recvmsg(fd, &m, all ? flags | MSG_WAITALL : flags);
    int rc = wire_check(in, r);
    if (rc < 0)
        return rc;
    wire_skip(&in->to, (uint64_t)r);
    return wire_ended(in);
}

/* The slow path of wire_read_message(): `got` payload bytes lie in `guess`; what is behind this
 * message's end goes to the stage, what is before it to where it belongs. */
static WIRE_SLOW int wire_put_right(wire_in *in, const cb_iov *guess, bool same, uint64_t got)
{
    uint64_t mine = got < in->h.nbytes ? got : in->h.nbytes, rest = got - mine;
    in->careful = true;
    if (rest > in->cap) {
        char *larger = realloc(in->stage, rest);
        if (!larger)
            return -ENOMEM;
        in->stage = larger;
        in->cap = rest;
    }
    struct iovec stage = {in->stage, rest};
    wire_cursor to = {&stage, 0, rest};
    wire_move(&to, wire_at(guess, mine, got), rest);
    in->head = 0;
    in->tail = rest;
    in->copied += rest + (same ? 0 : mine);
    if (same)
        wire_skip(&in->to, mine);
    else
        wire_move(&in->to, wire_at(guess, 0, mine), mine);
    return wire_ended(in);
}

/* Header and payload in one call, straight into the buffers of the expected message. */
static inline int wire_read_message(wire_in *in, int fd, int flags, const cb_iov *expected,
                                    wire_place place, void *ctx)
{
    uint64_t nbytes = 0;
    struct msghdr m = {.msg_iov = in->iov};
    in->iov[0] = (struct iovec){&in->h, sizeof in->h};
    m.msg_iovlen = 1 + wire_list(wire_at(expected, 0, expected->nbytes), in->iov + 1,
                                 WIRE_IOV_MAX - 1, &nbytes);
    ssize_t r = recvmsg(fd, &m, flags);
    int rc = wire_check(in, r);
    if (rc < 0)
        return rc;
    in->got = (size_t)r < sizeof in->h ? (size_t)r : sizeof in->h;
    if (in->got < sizeof in->h)
        return 0;
    uint64_t got = (uint64_t)r - sizeof in->h;
    if ((rc = wire_begin(in, place, ctx)) < 0)
        return rc;
    bool same = in->to.iov == expected->iov;
    if (!same || got > in->h.nbytes)
        return wire_put_right(in, expected, same, got);
    wire_skip(&in->to, got);
    return wire_ended(in);
}

/* The same after one recv() or recvmsg() with `flags`. Header and payload of the `expected`
 * message come with one call, straight into its buffers, unless it is large; small ones are read
 * ahead and copied.
 * Also -EAGAIN, -ECONNRESET (with in->closed at the end of the stream) or what the call said. */
static inline int wire_read(wire_in *in, int fd, int flags, const cb_iov *expected,
                            wire_place place, void *ctx)
{
    if (in->got == sizeof in->h)
        return in->to.left > WIRE_SMALL ? wire_read_payload(in, fd, flags)
                                        : wire_read_ahead(in, fd, flags, place, ctx);
    if (!expected || expected->nbytes <= WIRE_SMALL)
        return wire_read_ahead(in, fd, flags, place, ctx);
    if (in->careful || in->got || expected->nbytes > WIRE_LARGE)
        return wire_read_header(in, fd, flags, place, ctx);
    return wire_read_message(in, fd, flags, expected, place, ctx);
}

#endif
