/*
 * The producer's loop as librdkafka's own rdkafka_performance has it: produce, poll once for each
 * record, count delivery reports; when the queue is full, poll and try again. No stamps but the two
 * of the whole. Functions come from the library that is loaded already.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#include "../../native/kafka/library.h"

#define WAIT_MS 10

static cb_kafka_library kafka;

static uint64_t acked, failed;

static void delivered(void *rk, const cb_kafka_message *m, void *opaque)
{
    (void)rk, (void)opaque;
    if (m->err)
        failed++;
    else
        acked++;
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* NULL where this librdkafka has not all of them. */
static void *find_all(const char *file)
{
    void *library = dlopen(file, RTLD_NOW | RTLD_NOLOAD);
#define FIND(type, name, arguments) \
    if (!library || !(*(void **)&kafka.name##_ = dlsym(library, "rd_kafka_" #name))) \
        return NULL;
    CB_KAFKA_CALLS(FIND)
    return library;
}

typedef struct producer {
    void *rk, *topic;
} producer;

/* settings: name, value, ..., NULL. NULL when anything is wrong. */
void *reference_open(const char *file, const char **settings, const char *topic)
{
    char error[256];
    producer *p = calloc(1, sizeof *p);
    if (!p || !find_all(file))
        return NULL;
    void *conf = kafka.conf_new_();
    for (; settings[0]; settings += 2)
        if (kafka.conf_set_(conf, settings[0], settings[1], error, sizeof error))
            return NULL;
    kafka.conf_set_dr_msg_cb_(conf, delivered);
    p->rk = kafka.new_(CB_KAFKA_PRODUCER, conf, error, sizeof error);
    p->topic = p->rk ? kafka.topic_new_(p->rk, topic, NULL) : NULL;
    return p->topic ? p : NULL;
}

/* ns from the first call to the last report; -1 when a record failed or none comes any more. */
int64_t reference_produce(void *opened, uint64_t count, char *records, uint64_t nrecords,
                          uint64_t stride, uint64_t nbytes)
{
    producer *p = opened;
    uint64_t quiet = 0, before;
    acked = failed = 0;
    int64_t began = now_ns();
    for (uint64_t i = 0; i < count; i++) {
        char *value = records + i % nrecords * stride;
        while (kafka.produce_(p->topic, 0, 0, value, nbytes, NULL, 0, NULL)) {
            if (kafka.last_error_() != CB_KAFKA_QUEUE_FULL)
                return -1;
            kafka.poll_(p->rk, WAIT_MS);
        }
        kafka.poll_(p->rk, 0);
    }
    while (acked + failed < count && quiet < 6000) {
        before = acked;
        kafka.poll_(p->rk, WAIT_MS);
        quiet = acked == before ? quiet + 1 : 0;
    }
    return acked == count ? now_ns() - began : -1;
}

void reference_close(void *opened)
{
    producer *p = opened;
    kafka.topic_destroy_(p->topic);
    kafka.destroy_(p->rk);
    free(p);
}
