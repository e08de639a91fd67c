/*
 * Registered memory of an engine: the slots of a case, each page once, and pages of its own. A line
 * about what failed goes to `error`.
 */
#ifndef COMMBENCH_RDMA_REGIONS_H
#define COMMBENCH_RDMA_REGIONS_H

#include <errno.h>
#include <infiniband/verbs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "../commbench_ops.h"

enum { REGION_ACCESS = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ };

typedef struct region {         /* whole pages, registered */
    uintptr_t from, to;
    struct ibv_mr *mr;
} region;

typedef struct regions {        /* those of the slots are sorted by address */
    struct ibv_pd *pd;
    const char *device;
    char *error;                /* of 256 bytes */
    region *at;
    uint32_t count, room, last; /* last: where the last search ended */
} regions;

static __attribute__((noinline, cold)) int cannot_register(regions *all, size_t nbytes, int code)
{
    struct rlimit limit = {0};
    int n = snprintf(all->error, 256, "%zu bytes cannot be registered on %s: %s", nbytes,
                     all->device, strerror(code));
    if (code != ENOMEM && code != EAGAIN && code != EPERM)
        return -code;
    getrlimit(RLIMIT_MEMLOCK, &limit);
    char most[32] = "unlimited";
    if (limit.rlim_cur != RLIM_INFINITY)
        snprintf(most, sizeof most, "%llu KiB", (unsigned long long)limit.rlim_cur / 1024);
    snprintf(all->error + n, 256 - (size_t)n, "; the limit of locked memory is %s: raise it (ulimit "
             "-l unlimited; memlock in /etc/security/limits.conf; LimitMEMLOCK of slurmd)", most);
    return -code;
}

static struct ibv_mr *pin(regions *all, void *from, size_t nbytes, int *rc)
{
    struct ibv_mr *mr = ibv_reg_mr(all->pd, from, nbytes, REGION_ACCESS);
    *rc = mr ? 0 : cannot_register(all, nbytes, errno);
    return mr;
}

/* Zeroed pages of the engine's own. */
static void *make_pages(regions *all, size_t nbytes, struct ibv_mr **mr, int *rc)
{
    void *pages = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) {
        snprintf(all->error, 256, "%zu bytes of memory cannot be had", nbytes);
        *rc = -ENOMEM;
        return NULL;
    }
    *mr = pin(all, pages, nbytes, rc);
    if (*mr)
        return pages;
    munmap(pages, nbytes);
    return NULL;
}

/* ------------------------------------------------------------------ of a case */

static int by_address(const void *a, const void *b)
{
    uintptr_t x = ((const region *)a)->from, y = ((const region *)b)->from;
    return (x > y) - (x < y);
}

static region pages_of(const struct iovec *iov, uintptr_t page)
{
    uintptr_t from = (uintptr_t)iov->iov_base, to = from + iov->iov_len;
    return (region){from & ~(page - 1), (to + page - 1) & ~(page - 1), NULL};
}

static uint32_t collect(region *to, const cb_iov *slots, uint32_t nslots, uintptr_t page)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < nslots; i++)
        for (uint32_t j = 0; j < slots[i].n; j++)
            if (slots[i].iov[j].iov_len)
                to[n++] = pages_of(&slots[i].iov[j], page);
    return n;
}

static size_t count_buffers(const cb_iov *slots, uint32_t nslots)
{
    size_t n = 0;
    for (uint32_t i = 0; i < nslots; i++)
        n += slots[i].n;
    return n;
}

/* Sorted, and those that touch joined. */
static uint32_t join_regions(region *at, uint32_t n)
{
    uint32_t joined = 0;
    qsort(at, n, sizeof *at, by_address);
    for (uint32_t i = 0; i < n; i++)
        if (joined > 0 && at[i].from <= at[joined - 1].to)
            at[joined - 1].to = at[i].to > at[joined - 1].to ? at[i].to : at[joined - 1].to;
        else
            at[joined++] = at[i];
    return joined;
}

static int register_slots(regions *all, const cb_case *c)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    size_t room = count_buffers(c->request, c->nrequest) + count_buffers(c->reply, c->nreply) +
                  count_buffers(c->incoming, c->nincoming);
    region *at = calloc(room + 1, sizeof *at);
    if (!at) {
        snprintf(all->error, 256, "out of memory");
        return -ENOMEM;
    }
    uint32_t n = collect(at, c->request, c->nrequest, page);
    n += collect(at + n, c->reply, c->nreply, page);
    n += collect(at + n, c->incoming, c->nincoming, page);
    n = join_regions(at, n);
    all->at = at;
    all->room = (uint32_t)room + 1;
    for (int rc; all->count < n; all->count++) {
        region *one = &at[all->count];
        if (!(one->mr = pin(all, (void *)one->from, one->to - one->from, &rc)))
            return rc;
    }
    return 0;
}

static void release_slots(regions *all)
{
    for (uint32_t i = 0; i < all->count; i++)
        ibv_dereg_mr(all->at[i].mr);
    free(all->at);
    all->at = NULL;
    all->count = all->room = all->last = 0;
}

static bool holds(const region *one, uintptr_t from, size_t nbytes)
{
    return from >= one->from && from + nbytes <= one->to;
}

/* Memory that is in no slot: what a handler answers with. It is registered until the case ends. */
static __attribute__((noinline, cold)) struct ibv_mr *adopt(regions *all, const struct iovec *iov,
                                                            int *rc)
{
    region one = pages_of(iov, (uintptr_t)sysconf(_SC_PAGESIZE));
    if (all->count == all->room) {
        region *more = realloc(all->at, (size_t)all->room * 2 * sizeof *more);
        if (!more) {
            snprintf(all->error, 256, "out of memory");
            *rc = -ENOMEM;
            return NULL;
        }
        all->at = more;
        all->room *= 2;
    }
    if (!(one.mr = pin(all, (void *)one.from, one.to - one.from, rc)))
        return NULL;
    all->last = all->count++;
    all->at[all->last] = one;
    return one.mr;
}

/* The region that has this buffer: mostly the one that had the last. */
static inline struct ibv_mr *region_of(regions *all, const struct iovec *iov, int *rc)
{
    uintptr_t from = (uintptr_t)iov->iov_base;
    if (all->last < all->count && holds(&all->at[all->last], from, iov->iov_len))
        return all->at[all->last].mr;
    for (uint32_t i = 0; i < all->count; i++)
        if (holds(&all->at[i], from, iov->iov_len)) {
            all->last = i;
            return all->at[i].mr;
        }
    return adopt(all, iov, rc);
}

#endif
